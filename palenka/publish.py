"""Publishing: folders as branches of a repository on the Hugging Face Hub, as BabyLM's pipeline loads revisions.

Nothing is sent twice: the Hub knows files by their checksums, so an interrupted call can be repeated.
"""

from collections.abc import Mapping
from pathlib import Path

from palenka.ground.errors import UserError
from palenka.ground.progress import info

MAIN = "main"
"""The branch of the last model."""


def require_token() -> str:
    """The user's token.

    Raises:
        UserError: if there is none.
    """
    from huggingface_hub import get_token

    if (token := get_token()) is None:
        raise UserError(
            "there is no token for the Hugging Face Hub; run `hf auth login` or set HF_TOKEN, or leave --push out"
        )
    return token


def push(repository: str, branches: Mapping[str, Path]) -> None:
    """Send each folder to its branch; a repository that does not exist is created as private.

    Args:
        repository: as org/name.
        branches: folder by branch, in the order of sending.

    Raises:
        UserError: if the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    api = HfApi(token=require_token())
    branch = MAIN
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        for branch, folder in branches.items():
            if branch != MAIN:
                api.create_branch(repository, branch=branch, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, revision=branch, commit_message=f"{branch}: model and tokenizer"
            )
            info(f"{repository}: branch {branch} is sent")
    except (HTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(
            f"branch {branch} of {repository} cannot be sent to the Hugging Face Hub ({reason}); what was exported is "
            "kept: run the same command again, which sends the rest"
        ) from None
