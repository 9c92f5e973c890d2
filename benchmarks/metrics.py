"""Metrics beside DeepMind's surface-distance, MONAI's and MedPy's: speed, memory, and whether they agree.

    python benchmarks/metrics.py            [--rounds 5] [--peers-python PYTHON]   speed on 150 x 256 x 256
    python benchmarks/metrics.py agreement  [--data FOLDER]                        on 200 random and on real label maps
    python benchmarks/metrics.py memory                                            of a scan of 512 x 512 x 1000

About 10, 10 and 2 minutes. Linux only. Each contender has a process of its own on one core and with one thread;
in the first part they take turns. The peers come with the extra `bench`, or in an environment of their own
(see benchmarks/losses.py), whose interpreter --peers-python names. FOLDER has real label maps (*.nii.gz, at any
depth; those with `ct` in their name are left out).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from metrics_cases import ORGANS, Case, random_cases, real_cases, scan_cases, speed_cases
from metrics_worker import PEERS

OURS = ("directed_max", "pooled", "area_weighted")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
NAMES = {"deepmind": "DeepMind surface-distance", "monai": "MONAI", "medpy": "MedPy"}
METRICS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")
#: The definition that a peer uses.
SAME = {"deepmind": "area_weighted", "monai": "directed_max", "medpy": "pooled"}
#: MedPy takes minutes: it has its turn in the first of so many rounds.
MEDPY_EVERY = 5
#: A peer agrees if no metric by its own definition differs by more.
AGREES_TO = 1e-3


def command(what: str, contender: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    python = arguments.peers_python if contender in PEERS else sys.executable
    return [python, str(Path(__file__).with_name("metrics_worker.py")), what, contender, str(folder)]


def write_cases(cases: Iterable[Case], folder: Path, num_organs: int = 1) -> None:
    for number, case in enumerate(cases):
        np.savez(
            folder / f"{number:03} {case.name}.npz",
            prediction=case.prediction,
            truth=case.truth,
            spacing_mm=case.spacing_mm,
            organs=np.arange(1, num_organs + 1),
        )


def answers(what: str, contender: str, folder: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    with subprocess.Popen(
        command(what, contender, folder, arguments),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    ) as process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{contender} ended with status {process.returncode}: is it installed (see --help)?")


def speed_part(folder: Path, arguments: argparse.Namespace) -> None:
    """Rounds in which every contender scores both predictions once."""
    write_cases(speed_cases(), folder, len(ORGANS))
    names = sorted(path.stem for path in folder.glob("*.npz"))
    contenders = ["directed_max", "area_weighted", *PEERS]
    processes = {
        name: subprocess.Popen(
            command("turns", name, folder, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **ONE_THREAD},
        )
        for name in contenders
    }
    versions = []
    for name, process in processes.items():
        versions += answer(name, process)["versions"]
    rounds = []
    for number in range(arguments.rounds + 1):
        taken = {}
        for name, process in processes.items():
            # MedPy looks at the whole volume, whatever is in it, and takes minutes: one prediction is enough.
            chosen = names if name != "medpy" else names[:1] if number % MEDPY_EVERY == 1 else []
            process.stdin.write(json.dumps(chosen) + "\n")
            taken[name] = answer(name, process)
        rounds.append(taken)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    for case in names:
        print(f"\n## {case.split(' ', 1)[1].capitalize()} prediction, five organs on 150 × 256 × 256\n")
        print(speed_table(rounds, case, [name for name in contenders if case in rounds[1][name]]), flush=True)
    print(f"\n{', '.join(dict.fromkeys(versions))}.")


def answer(name: str, process: subprocess.Popen) -> Any:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended without an answer: is it installed (see --help)?")
    return json.loads(line)


def speed_table(rounds: list[dict[str, Any]], case: str, contenders: list[str]) -> str:
    header = "contender | s | range | CPU s | ÷ directed_max | CPU ÷ directed_max | ÷ area_weighted | first call, s | n"
    lines = [f"| {header} |", "|---" * (header.count("|") + 1) + "|"]
    wall, cpu = (
        {
            name: statistics.median(one[name][case][kind] for one in rounds[1:] if case in one[name])
            for name in contenders
        }
        for kind in (0, 1)
    )
    for name in contenders:
        seconds = [one[name][case][0] for one in rounds[1:] if case in one[name]]
        cells = [
            NAMES.get(name, f"partialseg, {name}"),
            f"{wall[name]:.3f}",
            f"{min(seconds):.3f} to {max(seconds):.3f}",
            f"{cpu[name]:.3f}",
            f"{wall[name] / wall['directed_max']:.1f}",
            f"{cpu[name] / cpu['directed_max']:.1f}",
            f"{wall[name] / wall['area_weighted']:.1f}",
            f"{rounds[0][name][case][0]:.2f}" if case in rounds[0][name] else "",
            str(len(seconds)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def agreement_part(folder: Path, arguments: argparse.Namespace) -> None:
    """The largest difference of each metric, of each kind of label map; status 1 where a peer does not agree."""
    disagreeing = []
    kinds = {"real": real_cases(arguments.data), "random": random_cases()}
    for kind, cases in kinds.items():
        (folder / kind).mkdir()
        write_cases(cases, folder / kind)
        if not any((folder / kind).iterdir()):
            raise SystemExit(f"{arguments.data} holds no label map that can be measured: give --data FOLDER")
    for kind in ("random", "real"):
        values = {
            name: {
                case: found["1"]
                for case, found, *_ in list(answers("values", name, folder / kind, arguments))[1:]
            }
            for name in (*OURS, *PEERS)
        }
        print(f"\n## {len(values['pooled'])} {kind} label maps\n")
        print(agreement_table(values))
        for peer, same in SAME.items():
            found = [difference(values, peer, same, metric) for metric in METRICS]
            agrees = all(one is None or one <= AGREES_TO for one in found)  # NaN does not
            print(
                f"\n{NAMES[peer]} and {same} agree to {AGREES_TO:g}: {'yes' if agrees else 'no'}", flush=True
            )
            disagreeing += [] if agrees else [f"{NAMES[peer]}, {kind} label maps"]
    if disagreeing:
        raise SystemExit(f"not in agreement: {'; '.join(disagreeing)}")


def difference(
    values: dict[str, dict[str, dict[str, float]]], peer: str, definition: str, metric: str
) -> float | None:
    """The largest difference over all cases, NaN where a number is; None where the peer has no such metric."""
    found = [
        abs(theirs[metric] - values[definition][case][metric])
        for case, theirs in values[peer].items()
        if metric in theirs
    ]
    return float(np.max(found)) if found else None  # unlike max, this keeps NaN


def agreement_table(values: dict[str, dict[str, dict[str, float]]]) -> str:
    header = "peer | definition | " + " | ".join(("Dice", "HD mm", "HD95 mm", "ASSD mm", "NSD"))
    lines = [f"| {header} |", "|---" * (header.count("|") + 1) + "|"]
    for peer in PEERS:
        for definition in OURS:
            cells = [NAMES[peer], f"**{definition}**" if definition == SAME[peer] else definition]
            for metric in METRICS:
                largest = difference(values, peer, definition, metric)
                cells.append("–" if largest is None else f"{largest:.2g}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_part(folder: Path, arguments: argparse.Namespace) -> None:
    """The peak of a fresh process for each pair."""
    header = "pair | definition | label maps, GB | peak before, GB | peak, GB | CPU s | HD mm"
    print(f"\n## 512 × 512 × 1000\n\n| {header} |")
    print("|---" * (header.count("|") + 1) + "|")
    for case in scan_cases():
        one = folder / case.name
        one.mkdir()
        write_cases([case], one)
        for definition in ("directed_max", "area_weighted"):
            ready, (_, found, seconds, before, peak) = answers("memory", definition, one, arguments)
            cells = [
                case.name,
                definition,
                *(f"{x:.2f}" for x in (ready["inputs_gb"], before, peak, seconds)),
            ]
            print("| " + " | ".join([*cells, f"{found['1']['hd_mm']:.1f}"]) + " |", flush=True)


PARTS = {"speed": speed_part, "agreement": agreement_part, "memory": memory_part}


def heading(arguments: argparse.Namespace) -> str:
    """Command, machine, date and load, as they are before anything is started."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return "\n".join([
        "```",
        " ".join(["python benchmarks/metrics.py", *words]),
        "```",
        "",
        f"{datetime.date.today()}, {models[0].split(': ')[1] if models else 'CPU'}, one of {os.cpu_count()} cores, "
        f"load average at the start {os.getloadavg()[0]:.2f}.",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    print(heading(arguments), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        PARTS[arguments.part](Path(folder), arguments)


if __name__ == "__main__":
    main()
