"""Writing to the Hugging Face Hub: one repository, one commit with exactly the files that it should hold.

One commit and not several: a Space rebuilds on each, and half an upload is a broken model. What the hub
refuses becomes a sentence with a remedy. Tokens are left to the library and never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

ALWAYS_KEPT = (".gitattributes",)
_REMEDIES = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    402: "this hardware needs a paid plan",
    403: "the token may not write there; use one with write access, or a repository of your own",
    404: "there is no such repository, or the token cannot see it",
}


def commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    message: str,
    keep: tuple[str, ...] = ("*",),
) -> tuple[str, list[str]]:
    """Put files (path in the repository -> local path or content) into a repository in one commit.

    keep: patterns of other files that stay there; the rest is deleted. Returns the commit's URL and the
    deleted paths.
    """
    with explained(f"uploading to {repo_id}"):
        there = api.list_repo_files(repo_id, repo_type=repo_type)
        kept = (*ALWAYS_KEPT, *keep)
        gone = [path for path in there if path not in files and not any(fnmatch(path, k) for k in kept)]
        operations = [
            *(CommitOperationDelete(path_in_repo=path) for path in gone),
            *(
                CommitOperationAdd(path_in_repo=path, path_or_fileobj=_source(files[path]))
                for path in sorted(files)
            ),
        ]
        done = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type)
    return done.commit_url, gone


def _source(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the hub's library raises into an OSError or ValueError of one sentence."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise OSError(f"{what}: {_REMEDIES[401]}") from None
    except HFValidationError as error:
        raise ValueError(f"{what}: {error}") from None
    except OfflineModeIsEnabled:
        raise OSError(f"{what}: HF_HUB_OFFLINE is set; unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        message = error.server_message or str(error).splitlines()[0]
        raise OSError(
            f"{what}: the hub answered {status} ({message}); {_REMEDIES.get(status, 'try again')}"
        ) from None
    except (OSError, ValueError):
        raise
    except RuntimeError as error:  # the only kind that Xet raises, which transfers large files
        message = (str(error).splitlines() or [""])[0]
        raise OSError(f"{what}: the transfer failed ({message}); try again") from error
    except Exception as error:
        # The HTTP library's own errors share no base class with OSError.
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise OSError(f"{what}: the hub cannot be reached ({type(error).__name__})") from error
