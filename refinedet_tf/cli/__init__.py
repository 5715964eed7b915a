"""The subcommands of `refinedet`, one module each.

A command module has a docstring whose first line is its summary, `define_flags()` and `main()`. It imports TensorFlow
only inside functions, so that help texts appear at once. A new command is also listed in `cli.main.COMMANDS`.
"""
