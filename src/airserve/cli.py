"""What every role script does around its work: log to stderr, print one JSON line, exit 2 for a user's mistake."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from airserve.errors import AirserveError, UserError

USER_ERROR = 2
FAILED = 1


def run_script(app: Any) -> None:
    """Run a cyclopts app whose command returns the script's result, and end the process.

    The result is printed as one JSON line, the last on stdout. A `UserError` is one line on stderr and exit status 2;
    any other `AirserveError` is one line and exit status 1.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        result = app(result_action="return_value")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except AirserveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    if result is not None:
        print(json.dumps(result), flush=True)
