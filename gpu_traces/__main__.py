"""``python -m gpu_traces check BUNDLE``: validate a bundle and say what is in it."""

from __future__ import annotations

import sys

from gpu_traces.bundle import Bundle, default_bundle, list_bundles, read_bundle
from gpu_traces.commands import Parser
from gpu_traces.walk import accepted_length


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr when the bundle cannot be trusted."""
    parser = Parser("python -m gpu_traces", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="validate a bundle and summarise it")
    check.add_argument(
        "bundle", nargs="?", help="folder or shipped name (default: the best shipped)"
    )
    verbs.add_parser("list", help="names of the bundles that ship with the package")
    options = parser.parse_args(argv)
    try:
        if options.verb == "list":
            print("\n".join(list_bundles()))
        else:
            print(summary(read_bundle(options.bundle or default_bundle())))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def summary(bundle: Bundle) -> str:
    """What the bundle holds, where it comes from, and what it says, as text."""
    manifest = bundle.manifest
    lines = [
        f"{manifest.name}: {manifest.origin}, recorded {manifest.created}",
        f"target {manifest.target}, drafter {manifest.drafter or 'none'}, gamma {manifest.gamma}",
        "rows: " + ", ".join(f"{name} {info.rows:,}" for name, info in manifest.files.items()),
    ]
    if manifest.has_traces:
        lines += ["", "tokens per walked round, full verification, bonus included:"]
        for temperature in manifest.temperatures:
            traces = read_bundle(bundle.folder, temperature).traces
            table = accepted_length(traces).round(3).to_string(index=False)
            lines += [f"temperature {temperature:g}", table]
    if manifest.has_steps:
        lines += ["", f"latency: {bundle.latency_fit[1]}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
