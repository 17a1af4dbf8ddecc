"""What a server takes from a request, and from all of them together."""

from dataclasses import dataclass

from diptych.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server, which refuses requests beyond them. They bound its memory."""

    batch: int = 64
    """Texts, or pictures, that go through the model at once."""
    window_ms: float = 2.0
    """How long the first of a batch waits for others."""
    waiting: int = 4096
    """Maximum number of waiting texts; a quarter as many pictures may wait. Further requests get 429."""
    deadline_s: float = 30.0
    """Seconds that a request may take, its body included; then it is answered with 503, whatever it waits for."""
    idle_s: float = 5.0
    """Seconds that the first or the next part of a body may be awaited."""
    body_mb: int = 32
    """Of one request."""
    all_bodies_mb: int = 256
    """Of all requests that are under way."""
    texts: int = 2048
    """Maximum number of texts per request, as in OpenAI's API. LangChain sends 1,000."""
    text_chars: int = 4000
    """Of one text."""
    images: int = 64
    """Of one request."""
    pixels: int = 50_000_000
    """Of one picture."""
    results: int = 10_000
    """How far into its results a search may reach."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "window_ms" and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.window_ms <= 1000:
            raise ConfigError(f"window_ms is {self.window_ms}; it must lie within [0, 1000]")

    @property
    def waiting_images(self) -> int:
        """Maximum number of waiting pictures. Each takes at least 150 kB when decoded, much more than a text."""
        return max(1, self.waiting // 4)

    @property
    def max_texts(self) -> int:
        """Maximum number of texts per request. A request with more texts than may wait could never be accepted."""
        return min(self.texts, self.waiting)

    @property
    def max_images(self) -> int:
        """Maximum number of pictures per request."""
        return min(self.images, self.waiting_images)
