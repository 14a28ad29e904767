"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """What is wrong, where (`file:line` or recipe key) and what to do, in one line. Ends a command with status 2."""
