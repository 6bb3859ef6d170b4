"""What the worker image starts. Locally it does the one job of test_input.json, or of `--test_input JSON`."""

from mediamill.serverless.runpod_handler import main

if __name__ == "__main__":
    main()
