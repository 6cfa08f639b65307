"""Write the tables and the chart of benchmarks/results/ into the README and the pages of docs/.

    python benchmarks/result_pages.py [--check]

A page has a place for each table, between `<!-- results: NAME -->` and `<!-- end -->`, which the
functions of TABLES fill. --check changes nothing, and exits with 1 if a page differs.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_chart import draw
from peer_report import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHART = ROOT / "docs" / "images" / "peers.svg"
PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
FLAGS = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx2": "AVX2", "i8mm": "i8mm"}
HEADLINE = {
    "bita-edge int4, AR": "bita-edge, plain decoding",
    "bita-edge int4, trees": "**bita-edge, with drafts**",
    "llama.cpp Q4_1": "llama.cpp, the same weights (Q4_1)",
    "llama.cpp Q4_0": "llama.cpp, Q4_0",
    "llama.cpp Q4_0, n-gram lookup": "llama.cpp, Q4_0, n-gram drafts",
    "onnxruntime-genai int4": "onnxruntime-genai",
    "onnxruntime-genai int4, n-gram lookup": "onnxruntime-genai, n-gram drafts",
}
KINDS = {"stem": "science", "humaneval": "code to complete (HumanEval)"}
Figures = Mapping[str, Any]


def read(name: str) -> Figures:
    """Return the figures of a file in benchmarks/results/."""
    found: Figures = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; columns after the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def device_of(report: Figures) -> str:
    """Return the processor of a report, for people."""
    kind = next((name for flag, name in FLAGS.items() if flag in report["cpu_flags"]), "no VNNI")
    return f"{report['cpu_count']} cores of {report['cpu'].replace('(R)', '')} ({kind})"


def about_peers(report: Figures) -> str:
    return (
        f"{report['model'].rsplit('.', 2)[0]} on {device_of(report)}, {report['threads']} threads; "
        f"{report['num_prompts']} prompts of `{report['prompts']}`, greedy, at most "
        f"{report['new_tokens']} new tokens; all engines interleaved.\n\n"
    )


def headline() -> str:
    engines = read("peers")["engines"]
    rows = []
    for name, shown in HEADLINE.items():
        row = engines[name]
        drafts = row["plain"] != name
        ratio = f"{row['times_plain']['mean']:.2f}" if drafts else ""
        same = f"{row['same_text']} of {row['n']}" if drafts else ""
        rows.append((shown, f"{row['tokens_per_second']['mean']:.0f}", ratio, same))
    head = ("", "tokens/s", "times the same engine without drafts", "answers unchanged by drafts")
    return markdown(head, rows)


def peers(report: Figures) -> str:
    head, *rows = table(dict(report))
    shown = [
        (name.replace("AR", "plain").replace("trees", "drafts"), *cells) for name, *cells in rows
    ]
    return about_peers(report) + markdown(head, shown)


def precisions() -> str:
    rows = []
    for engine, row in read("precisions")["engines"].items():
        verified = row["verify"]["exact"]["own adapter"]
        plain, drafted = row["ar_tokens_per_second"], row["tree_tokens_per_second"]
        rows.append(
            (
                engine.rsplit("-", 1)[1],
                f"{row['megabytes']:.0f}",
                f"{row['peak_megabytes']:.0f}",
                f"{plain:.0f}",
                f"{drafted:.0f}",
                f"{drafted / plain:.2f}",
                f"{row['tokens_per_step']:.2f}",
                f"{row['perplexity']:.3f}",
                f"{row['kl']:.4f}",
                f"{100 * row['same_greedy']:.1f} %",
                f"{verified['identical']} of {verified['prompts']}",
            )
        )
    head = "precision|disk, MB|memory, MB|plain, tokens/s|with drafts, tokens/s|ratio|tokens a step"
    head += "|perplexity|KL to fp32, nats|same next token as fp32|same text as plain"
    return markdown(head.split("|"), rows)


def float_checkpoint() -> str:
    ((_, report),) = read("float_checkpoint").items()
    names = {
        "8 bits": "`int8`",
        "gptq, minima": "`int4`",
        "nearest, minima": "`int4`, `QUANTIZER=rtn`",
    }
    rows = []
    for name, shown in names.items():
        way = report["ways"][name]
        rows.append((shown, f"{way['kl']:.3f}", f"{100 * way['same_greedy']:.1f} %"))
    return markdown(("precision", "KL to float32, nats", "same next token as float32"), rows)


def row_costs() -> str:
    rows = []
    for name, engine in read("rows")["engines"].items():
        after = engine["after"]["127"]
        kernels = name.partition("(")[2].rstrip(")") or "ONNX Runtime's operators"
        ratios = [f"{after[q]['ratio_of_min']:.2f}" for q in ("2", "4", "8", "16")]
        rows.append((kernels, f"{after['1']['min_ms']:.2f}", *ratios))
    return markdown(("kernels", "T(1), ms", "T(2) / T(1)", "T(4)", "T(8)", "T(16)"), rows)


def growth() -> str:
    rows = []
    for size, shape in read("growth")["shapes"].items():
        one = shape["step_ms"]["1"]["p50_ms"]
        ratios = [f"{shape['step_ms'][q]['p50_ms'] / one:.2f}" for q in ("2", "4", "8")]
        rows.append(
            (
                f"{size} billion ({shape['shape_of']})",
                f"{shape['file_mb']:.0f}",
                f"{shape['session_mb']:.0f}",
                f"{one:.2f}",
                *ratios,
                f"{100 * shape['share_of_copy']:.0f} %",
                f"{shape['plain_tokens_per_second']:.0f}",
                f"{shape['trees_tokens_per_second']:.0f}",
                f"{shape['times']:.2f}",
            )
        )
    head = "parameters (shape of)|file, MB|memory, MB|T(1), ms|T(2) / T(1)|T(4)|T(8)"
    head += (
        "|bandwidth of weights / of a copy|plain, tokens/s|with drafts (modelled)|ratio (modelled)"
    )
    return markdown(head.split("|"), rows)


def large_shape() -> str:
    report = read("large_shape")
    rows = []
    for name, engine in report["engines"].items():
        peer = report["llama_cpp"][name.split()[1]]
        rows.append(
            (
                name.replace("native", "native operators,").replace("ort", "ONNX Runtime's,"),
                f"{engine['tokens_per_second']:.1f}",
                f"{peer['tokens_per_second']:.1f}",
                f"{engine['times_llama_cpp']:.2f}",
            )
        )
    return markdown(("weights", "bita-edge, plain, tokens/s", "llama.cpp, tokens/s", "ratio"), rows)


def single_answers() -> str:
    report = read("single_answers")
    drafted, again = report["with_drafts"], report["plainly_again"]
    ratio = report["tokens_per_second"] / report["plain_tokens_per_second"]
    rows = [
        ("all answers together, tokens/s", f"{report['plain_tokens_per_second']:.0f}",
         f"{report['tokens_per_second']:.0f}", f"{ratio:.2f}"),
        ("slowest answer, times plain", f"{again['min']:.2f}", f"{drafted['min']:.2f}", ""),
        ("median answer", f"{again['median']:.2f}", f"{drafted['median']:.2f}", ""),
        ("fastest answer", f"{again['max']:.2f}", f"{drafted['max']:.2f}", ""),
    ]  # fmt: skip
    head = (f"{report['num_prompts']} answers", "plain (again)", "with drafts", "ratio")
    return markdown(head, rows)


def about_gains() -> str:
    report = read("gains")
    again = report["plainly_again"]
    return (
        f"{device_of(report)}; {report['num_prompts']} prompts, greedy, at most "
        f"{report['max_new_tokens']} new tokens; the median of {report['turns']} rounds of each "
        "answer, all engines interleaved. Plain decoding was measured twice, which shows the "
        f"noise: the second time its answers had {again['min']:.2f} to {again['max']:.2f} times "
        f"the speed of the first time (median {again['median']:.2f}), and {again['below_0.97']} of "
        "them were over 3 % slower.\n"
    )


def gains_by_kind() -> str:
    report = read("gains")
    none, shipped = (report["engines"][name] for name in ("none", "shipped"))
    kinds = dict(sorted(shipped["by_kind"].items(), key=lambda item: -item[1]["times_plain"]))
    rows = []
    for kind, row in kinds.items():
        answers = row["answers"]
        rows.append(
            (
                KINDS.get(kind, kind),
                row["prompts"],
                f"{none['by_kind'][kind]['times_plain']:.2f}",
                f"{row['times_plain']:.2f}",
                f"{row['tokens_per_step']:.2f}",
                f"{answers['min']:.2f} to {answers['max']:.2f}",
            )
        )
    head = "kind of text|answers|times plain, without an adapter|times plain, shipped adapter"
    head += "|tokens a step|single answers, times plain"
    return markdown(head.split("|"), rows)


def gains_by_adapter() -> str:
    report = read("gains")
    names = {"none": "none", "shipped": "the shipped one", "LoRA": "the shipped one with LoRA"}
    rows = []
    for name, shown in names.items():
        row = report["engines"][name]
        every = row["all"]
        rows.append(
            (
                shown,
                f"{every['times_plain']:.2f}",
                f"{every['tokens_per_step']:.2f}",
                f"{every['guessed_tokens_per_step']:.2f}",
                f"{every['mask_tokens_per_step']:.2f}",
                every["answers"]["below_0.97"],
                row["same_text"],
            )
        )
    head = "adapter|times plain|tokens a step|of them guesses|from masks|answers over 3 % slower"
    head += f"|same text, of {report['num_prompts']}"
    return markdown(head.split("|"), rows)


def option_costs() -> str:
    costs = [engine["costs"] for engine in read("options")["engines"].values()]
    rows = [("greedy, the whole step", *(f"{each['greedy']['step_ms']:.2f}" for each in costs))]
    for name in costs[0]:
        if name != "greedy":
            more = (round(each[name]["more_than_greedy_ms"], 2) + 0.0 for each in costs)  # no -0
            rows.append((name, *(f"{ms:+.2f}" for ms in more)))
    return markdown(("option, ms a step", "int4", "int8"), rows)


def clients() -> str:
    median = read("serving_load")["median"]
    by_server: dict[str, dict[int, Figures]] = {}
    for each in median:
        by_server.setdefault(each["server"], {})[each["clients"]] = each
    ours, theirs = by_server["bita"], next(v for k, v in by_server.items() if k != "bita")
    rows = []
    for number in ours:
        cells = []
        for each in (ours[number], theirs[number]):
            cells += [f"{each['tokens_per_second']:.0f}", f"{each['first_token_p50_ms']:.0f}"]
            cells.append(f"{each['first_token_p95_ms']:.0f}")
        rows.append((number, *cells))
    head = "clients|bita serve, tokens/s|first token p50, ms|p95|llama-server, tokens/s"
    return markdown([*head.split("|"), "first token p50, ms", "p95"], rows)


def libbita() -> str:
    rows = []
    for name, side in read("cpp_speed")["sides"].items():
        start, memory = side.get("start_to_first_token_ms"), side.get("peak_memory_mb")
        rows.append(
            (
                name.replace(", SmolLM2-135M-Instruct.Q4_1.gguf", " Q4_1").replace(
                    ", smollm2-Q4_0.gguf", " Q4_0"
                ),
                f"{side['tokens_per_second']:.0f}",
                f"{side['first_token_ms']:.0f}",
                f"{100 * side['host_share']:.2f} %" if side["host_share"] else "",
                f"{start['median']:.0f}" if start else "",
                f"{memory:.0f}" if memory else "",
            )
        )
    head = (
        "|tokens/s|first token, ms|host's share of a step|start to first token, ms|peak memory, MB"
    )
    return markdown(head.split("|"), rows)


def gpu() -> str:
    speeds = read("gpu_h100")["runs"]["fp16, small adapter"]["speed"]["speeds"]
    names = {
        "AR, graph": "plain decoding, captured CUDA graph",
        "AR, no graph": "plain decoding, kernel by kernel",
        "tree, graph": "a step of 16 rows, captured CUDA graph",
    }
    rows = []
    for name, shown in names.items():
        row = speeds[name]
        speed = "" if name.startswith("tree") else f"{row['tokens_per_second']:.0f}"
        share = f"{row['step_ms'] * row['host_share']:.2f}"
        rows.append((shown, f"{row['step_ms']:.2f}", share, speed))
    return markdown(("fp16", "ms a step", "of it the host's", "tokens/s"), rows)


def plans() -> str:
    report, rows = read("plans"), []
    for precision in ("fp16", "int4"):
        for dialect in ("standard", "plain"):
            found = [
                each
                for each in report["plans"]
                if (each["precision"], each["dialect"]) == (precision, dialect)
            ]
            seconds = [each["seconds"] for each in found]
            peak = max(found, key=lambda each: int(each["peak_bytes"]))
            rows.append(
                (
                    f"{precision}, `{dialect}`",
                    f"{found[0]['weight_bytes'] / 1e6:.0f}",
                    f"{max(each['plan_bytes'] for each in found) / 1e6:.0f}",
                    f"{min(seconds):.0f} to {max(seconds):.0f}",
                    f"{peak['peak_bytes'] / 1e9:.2f}",
                    f"{peak['estimated_peak_bytes'] / 1e9:.2f}",
                )
            )
    head = "|weights, MB|plan, MB|build, s|peak memory, GB|estimated before, GB"
    return markdown(head.split("|"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "headline": headline,
    "peers": lambda: peers(read("peers")),
    "gemma": lambda: peers(read("peers_gemma3_270m")),
    "precisions": precisions,
    "float-checkpoint": float_checkpoint,
    "rows": row_costs,
    "growth": growth,
    "large-shape": large_shape,
    "single-answers": single_answers,
    "gains-about": about_gains,
    "gains-by-kind": gains_by_kind,
    "gains-by-adapter": gains_by_adapter,
    "options": option_costs,
    "clients": clients,
    "libbita": libbita,
    "gpu": gpu,
    "plans": plans,
}


def filled(text: str) -> str:
    """Return a page with its tables as the results have them."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}{place[4]}", text)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    different = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted != text:
            different.append(page.name)
            if not args.check:
                page.write_text(wanted, encoding="utf-8")
    if args.check and different:
        print(f"{', '.join(different)}: run python benchmarks/result_pages.py", file=sys.stderr)
    if not args.check:
        draw(read("peers"), CHART)
    return int(args.check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
