"""Limits of a server: per request, and for all requests together."""

from dataclasses import dataclass

from diptych.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server. Requests beyond them are refused, which bounds the memory that the server uses.

    >>> Limits(waiting=1000).max_texts
    1000

    Raises:
        ConfigError: a limit is not positive, or `window_ms` is outside [0, 1000].
    """

    batch: int = 64
    """Maximum number of texts per batch of the model; for images, a quarter of it."""
    window_ms: float = 2.0
    """Time in milliseconds that the first request of a batch waits for others, within [0, 1000]."""
    waiting: int = 4096
    """Maximum number of queued texts; for images, a quarter of it. Further requests get status 429."""
    deadline_s: float = 30.0
    """Maximum duration of a request in seconds, including the upload of its body. A request that takes longer gets 503."""
    idle_s: float = 5.0
    """Maximum time in seconds between two parts of a body, and before its first part."""
    body_mb: int = 32
    """Maximum size of the body of one request, in MiB."""
    all_bodies_mb: int = 256
    """Maximum size of the bodies of all current requests together, in MiB."""
    texts: int = 2048
    """Maximum number of texts per request, as in OpenAI's API. LangChain sends 1,000."""
    text_chars: int = 4000
    """Maximum number of characters per text."""
    images: int = 64
    """Maximum number of images per request."""
    pixels: int = 50_000_000
    """Maximum number of pixels per image."""
    results: int = 10_000
    """Maximum of `offset + limit` in a search."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "window_ms" and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.window_ms <= 1000:
            raise ConfigError(f"window_ms is {self.window_ms}; it must lie within [0, 1000]")

    @property
    def waiting_images(self) -> int:
        """Maximum number of images in the queue. A decoded image takes at least 150 kB, much more than a text."""
        return max(1, self.waiting // 4)

    @property
    def max_texts(self) -> int:
        """Maximum number of texts per request. It is at most `waiting`, because a larger request would never fit the queue."""
        return min(self.texts, self.waiting)

    @property
    def max_images(self) -> int:
        """Maximum number of images per request."""
        return min(self.images, self.waiting_images)
