"""What can go wrong on the hub, each in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from monosem.types import UserError

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
NETWORK = "check the network (and the environment variable HF_ENDPOINT, if it is set), then try again"


@contextlib.contextmanager
def explained(spec: str, repo: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into a UserError of one sentence that starts with `spec`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{spec}: {repo} asks for consent to its conditions; give it at https://huggingface.co/{repo}, then {LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f'{spec}: {repo} has no revision "{revision or "main"}"; name one of its branches, tags or commits'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{spec}: {_missing(repo, writing)}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise UserError(f"{spec}: {_out_of_reach(repo, revision, writing)}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{spec}: {_refused(repo, error, writing)}") from error
    except OSError as error:
        raise UserError(f"{spec}: {error.strerror or error}; free some space or check the folder in HF_HOME") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        what = "the hub won't take this" if writing else "the hub's answer can't be read"
        raise UserError(f"{spec}: {what} ({told}); {'mend that' if writing else NETWORK}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # httpx or httpx2, by the version of huggingface_hub
            raise
        raise UserError(f"{spec}: the hub can't be reached ({_first_line(error)}); {NETWORK}") from error


def is_unreachable(error: Exception) -> bool:
    """Tell whether the hub was not reached at all, so that its cache is what there is."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return False
    return isinstance(error, OfflineModeIsEnabled) or type(error).__module__.startswith("httpx")


def _missing(repo: str, writing: bool) -> str:
    if writing:
        return (
            f"{repo} is no repository for models that you can write to (there may be a data set or a space of that "
            "name); choose another name, or ask its owner"
        )
    return (
        f"the hub has no model repository {repo}, or it is private; check the name (data sets and spaces don't count), "
        f"and {LOGIN} if it is private"
    )


def _out_of_reach(repo: str, revision: str | None, writing: bool) -> str:
    from huggingface_hub.constants import is_offline_mode

    offline = is_offline_mode()
    if writing:
        return "nothing can be published while HF_HUB_OFFLINE is set; unset it"
    at = f" at {revision}" if revision else ""
    why = "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
    mend = "unset it and run this once with a network" if offline else NETWORK
    return f"{why}, and not all of this is in the cache of {repo}{at}; {mend}"


def _refused(repo: str, error: Exception, writing: bool) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or _first_line(error)
    if status == 401:
        return f"the hub doesn't accept the token ({said}); {LOGIN} with one that is valid"
    if status == 403:
        if writing:
            return f"the token may not write to {repo} ({said}); use one with write access there, or another owner"
        return f"the token may not read {repo} ({said}); use one with access to it"
    if status is not None and (status >= 500 or status == 429):
        return f"the hub is busy or out of order (status {status}: {said}); try again later"
    return f"the hub refuses (status {status}: {said})"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
