"""The page: `python app.py`, then open the address that it prints.

DYNAMO_MODEL names what to load (default "embedded", the small pair that comes with the project, which also
stands in, and the page says so, where the named one cannot be had); DYNAMO_QUANTIZE may be 8bit or 4bit;
DYNAMO_VOTES names the folder of the blind votes ("" for none). All may be set in spaces_config.yaml.
"""

import os
import sys
from functools import partial
from pathlib import Path

from dynamo.commands.prompts import read_prompts
from dynamo.evaluation.audit import audit
from dynamo.evaluation.for_page import sweep_reports, time_split
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.loading import EMBEDDED, load_or_embedded
from dynamo.spaces import read_config
from dynamo.ui import Analyses, Contenders, Offer, build_demo, launch_options

HERE = Path(__file__).parent
RECORDING = HERE / "assets" / "recording.ndjson"
SWEEP = HERE / "assets" / "sweep.json"


def main() -> None:
    try:
        config = read_config(HERE / "spaces_config.yaml", os.environ)
        pair, notice = load_or_embedded(config.model, quantize=config.quantize)
        shipped = pair.name == EMBEDDED
        report = SweepReport.read(SWEEP).to_json() if shipped else None
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    prompts = read_prompts(None, pair.tokenizer)
    analyses = Analyses(
        audit=partial(audit, pair.base),
        split=partial(time_split, pair, prompts),
        sweep=partial(sweep_reports, pair, prompts),
        report=report,
    )
    offer = Offer(
        notice=notice,
        recording=RECORDING if shipped else None,
        votes=config.votes,
        strip=not config.zero_gpu,
        queue_size=config.queue_size,
        limits=config.limits,
    )
    build_demo(Contenders.from_pair(pair), analyses, offer).launch(**launch_options(config.limits))


if __name__ == "__main__":
    main()
