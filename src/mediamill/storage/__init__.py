"""Where finished files live. One file a backend; the file name is the key of `STORAGE_MODE`."""
