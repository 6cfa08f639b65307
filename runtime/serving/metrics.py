"""Metrics for Prometheus."""

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
    """The metrics of a server. docs/serving.md lists their names."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"bita_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"bita_{name}_seconds", text, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests", "requests by endpoint and HTTP status", "endpoint", "status"
        )
        self._answers = counter("answers", "answers by finish reason", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._reused = counter("prompt_tokens_reused", "prompt tokens that were already cached")
        self._tokens = counter("generated_tokens", "tokens of answers")
        self._decoded = counter("decoded_tokens", "answer tokens emitted by decode steps")
        self._steps = counter("steps", "decode steps, counted for each text that takes part")
        self._rows = counter("step_rows", "rows of decode steps, including those of prompts")
        self._accepted = counter("accepted_drafts", "accepted nodes, by depth in the tree", "depth")
        self._step = seconds("step", "time of a decode step, once if texts share it", STEP_SECONDS)
        self._wait = seconds("wait", "time in line", REQUEST_SECONDS)
        self._first = seconds("first_token", "time from arrival to first token", REQUEST_SECONDS)
        self._request = seconds("request", "time from arrival to the end", REQUEST_SECONDS)
        self._per_step = Gauge(
            "bita_tokens_per_step", "tokens per decode step since the start", registry=registry
        )
        self._num_steps = self._num_decoded = 0

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read on request."""
        Gauge(f"bita_{name}", text, registry=self._registry).set_function(value)

    def count_steps(self, stats: Stats) -> None:
        """Add the figures of steps that have run."""
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
        """Add a finished request."""
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
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
