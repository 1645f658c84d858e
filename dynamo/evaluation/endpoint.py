"""Questions to a judge model behind any OpenAI-compatible endpoint, with retries.

Too many requests, server errors, timeouts, lost connections and malformed answers are retried, later each
time; refusals (a wrong key, an unknown model) end the run. The key is sent, and never written anywhere.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

# Without a key the client would send the hub's token to the endpoint.
NO_KEY = "none"
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Answer:
    """text: the judge's words; prompt_tokens, completion_tokens: as the endpoint counts them (0 if it does
    not); attempts: how many requests it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    attempts: int


class NoAnswer(Exception):
    """The endpoint did not answer one question; the message says why."""


class Endpoint:
    """A judge model at a base URL such as http://localhost:8000/v1.

    timeout: seconds for one request; attempts: requests for one question at most; wait: seconds before the
    second attempt, doubled each time and varied by up to a half, unless the endpoint says how long.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 6,
        wait: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected a URL such as http://localhost:8000/v1, got {url!r}")
        if attempts < 1:
            raise ValueError(f"attempts: expected 1 or more, got {attempts}")
        if not timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
        self._client = InferenceClient(base_url=url, api_key=key or NO_KEY, timeout=timeout)
        self._model, self._key = model, key
        self._attempts, self._wait, self._sleep = attempts, wait, sleep

    def ask(self, question: str, max_tokens: int, temperature: float, seed: int) -> Answer:
        """The answer to one question. Raises NoAnswer after the last attempt, OSError if the endpoint
        refuses."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._request(question, max_tokens, temperature, seed, attempt)
            except OfflineModeIsEnabled:
                raise OSError("endpoint: HF_HUB_OFFLINE is set, and its client obeys it; unset it") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status < 500 and status not in (408, 409, 425, 429):
                    raise OSError(f"endpoint: refused with status {status}: {self._said(error)}") from None
                reason, wait = f"status {status}", _seconds(error.response.headers.get("retry-after"))
            except HTTPError as error:  # timeouts and lost connections
                reason, wait = f"{type(error).__name__}: {self._said(error)}", None
            except _Malformed as error:
                reason, wait = f"malformed answer: {error}", None
            if attempt < self._attempts:
                backoff = self._wait * 2 ** (attempt - 1) * random.uniform(1.0, 1.5)
                self._sleep(min(backoff if wait is None else wait, LONGEST_WAIT))
        raise NoAnswer(f"no answer after {self._attempts} attempts, the last: {reason}")

    def _request(self, question: str, max_tokens: int, temperature: float, seed: int, attempt: int) -> Answer:
        try:
            output: Any = self._client.chat_completion(
                [{"role": "user", "content": question}],
                model=self._model,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
            )
            said = output.choices[0].message.content
            if not isinstance(said, str):
                raise TypeError(f"content is {said!r}")
        except HTTPError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _Malformed(f"{type(error).__name__}: {self._said(error)}") from None
        usage = getattr(output, "usage", None)
        counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(said, *(count if isinstance(count, int) else 0 for count in counts), attempt)

    def _said(self, error: Exception) -> str:
        said = " ".join(str(error).split())[:300]
        return said.replace(self._key, "***") if self._key else said


class _Malformed(Exception):
    pass


def _seconds(header: str | None) -> float | None:
    """A Retry-After header's seconds; None without one, or if it gives a date."""
    try:
        return max(0.0, float(header))
    except (TypeError, ValueError):
        return None
