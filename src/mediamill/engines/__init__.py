"""What does the work, inside a child process. One file an engine; heavy libraries are imported only in here."""
