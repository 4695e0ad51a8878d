"""The root of the mistakes that are the user's: each is one line that says what was given, what is allowed, where to change it.

It stands here, below everything, so that trainers and reports can raise it as well as the sweeper, which hands it out.
"""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used as it is: a file, a name, a folder, a server. As text it is one line a problem."""
