"""What is asked of the machine: a budget of memory, threads, arithmetic, and time said for people."""
