"""What is written and loaded: one folder format, checked before anything is believed, and what each kind stores."""
