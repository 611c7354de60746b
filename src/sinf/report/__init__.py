"""What a person sees: tables on the terminal, figures in files."""
