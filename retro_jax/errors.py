"""What a user can put right. Everything else that goes wrong is our bug, and shows its traceback."""


class UserError(Exception):
    """Bad input. The message names the field or file, its value, and the remedy.

    The command line prints it as one line and exits with status 2.
    """
