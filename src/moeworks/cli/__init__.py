"""The command line: main.py knows the verbs, and every verb is a module with a run(argv)."""
