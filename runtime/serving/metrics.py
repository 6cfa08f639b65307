"""Figures for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from bita.runtime.decoding.stats import Stats
from bita.runtime.serving.queue import Job

STEP_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1)
REQUEST_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server. `text` gives them; the names are in docs/serving.md."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"bita_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"bita_{name}_seconds", text, buckets=buckets, registry=registry)

        self.requests = counter("requests", "by endpoint and HTTP status", "endpoint", "status")
        self._answers = counter("answers", "by how they ended", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._reused = counter("prompt_tokens_reused", "of them, those that were in the cache")
        self._tokens = counter("generated_tokens", "tokens of answers")
        self._decoded = counter("decoded_tokens", "of them, those that decode steps emitted")
        self._steps = counter("steps", "decode steps of each text; several texts may share one")
        self._rows = counter("step_rows", "rows of decode steps, those of prompts in them included")
        self._accepted = counter("accepted_drafts", "accepted nodes, by depth in the tree", "depth")
        self._step = seconds("step", "time of a decode step, once if texts share it", STEP_SECONDS)
        self._wait = seconds("wait", "time in line", REQUEST_SECONDS)
        self._first = seconds("first_token", "from coming to the first token", REQUEST_SECONDS)
        self._request = seconds("request", "from coming to the end", REQUEST_SECONDS)
        self._per_step = Gauge(
            "bita_tokens_per_step", "tokens per decode step since the start", registry=registry
        )
        self._num_steps = self._num_decoded = 0

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is looked up when it is asked for."""
        Gauge(f"bita_{name}", text, registry=self._registry).set_function(value)

    def count_steps(self, stats: Stats) -> None:
        """Add steps that have run."""
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._reused.inc(stats.num_reused_tokens)
        self._steps.inc(stats.num_steps)
        self._rows.inc(stats.num_rows)
        self._decoded.inc(stats.num_tokens)
        for path, count in stats.num_accepted.items():
            if path:
                self._accepted.labels(str(len(path))).inc(count)
        for step_ms in stats.step_ms:
            self._step.observe(step_ms / 1000)
        self._num_steps += stats.num_steps
        self._num_decoded += stats.num_tokens
        self._per_step.set(self._num_decoded / self._num_steps if self._num_steps else 0)

    def count(self, job: Job, now: float) -> None:
        """Add a request that has ended."""
        for generation in job.generations:
            if generation.finish_reason is not None:
                self._answers.labels(generation.finish_reason).inc()
            self._tokens.inc(len(generation.token_ids))
        if job.started_at is not None:
            self._wait.observe(job.started_at - job.came_at)
        if job.first_token_at is not None:
            self._first.observe(job.first_token_at - job.came_at)
        self._request.observe(now - job.came_at)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
