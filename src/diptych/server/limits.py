"""What a server takes from a request, and from all of them together."""

from dataclasses import dataclass

from diptych.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Whoever asks for more is told so; memory follows from these, not from who asks."""

    batch: int = 64
    """Texts, or pictures, that go through the model at once."""
    window_ms: float = 2.0
    """How long the first of a batch waits for others."""
    waiting: int = 4096
    """Texts that may wait for the model, and a quarter as many pictures; further requests get 429."""
    deadline_s: float = 30.0
    """Seconds that a request may take, its body included; then it is answered with 503, whatever it waits for."""
    idle_s: float = 5.0
    """Seconds that the first or the next part of a body may be awaited."""
    body_mb: int = 32
    """Of one request."""
    all_bodies_mb: int = 256
    """Of all requests that are under way."""
    texts: int = 2048
    """Of one request, as in OpenAI's API; LangChain sends 1,000."""
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
        """Pictures that may wait: decoded, each takes 150 kB or more, which a text does not."""
        return max(1, self.waiting // 4)

    @property
    def max_texts(self) -> int:
        """Texts of one request: a request of more than may wait could never be taken."""
        return min(self.texts, self.waiting)

    @property
    def max_images(self) -> int:
        """Pictures of one request."""
        return min(self.images, self.waiting_images)
