"""One module per command of `vla`: SUMMARY, EXAMPLES, add_arguments(parser) and run(args) -> exit code. See `vla.cli`."""
