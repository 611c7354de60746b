"""What is written and loaded: one folder format, checked before anything is accepted, and what each kind stores."""
