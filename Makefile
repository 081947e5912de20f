# The one way to run anything; .ci/run calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help
help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/installed ## install the package and its tools into .venv

# Most tests wait for timers and processes, so more of them run at once than there are cores.
WORKERS ?= $(shell expr 4 \* $$(nproc))
PYTEST := pytest --numprocesses $(WORKERS) --dist load --maxschedchunk 2 tests/netns tests/integration tests/unit

.PHONY: test
test: install ## run all tests but those of the images (WORKERS: how many at once)
	$(BIN)/$(if $(MEASURE),coverage run -m )$(PYTEST)

FUZZ_EXAMPLES ?= 20000

.PHONY: fuzz
fuzz: install ## test many more random connections, and faults of two pods, against the models (FUZZ_EXAMPLES)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest --timeout 0 tests/integration/test_flow_properties.py \
		tests/unit/hold/test_elector.py

MINUTES ?= 3

.PHONY: soak
soak: install ## random clients, while everything around the proxy fails (MINUTES)
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

.PHONY: coverage
coverage: install ## run the same tests, and show the coverage of the package
	$(BIN)/coverage erase
	$(MAKE) test MEASURE=1
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: docs
docs: install ## write the documents that are generated from the code
	$(BIN)/python -m docs.metrics
	$(BIN)/python -m docs.log_events
	$(BIN)/python -m docs.configuration

.PHONY: demo
demo: install ## show the main job at work, in network namespaces of its own
	@$(BIN)/python -m tests.support.demo

.PHONY: demo-ha
demo-ha: install ## show two pods with one reserved address, in network namespaces of its own
	@$(BIN)/python -m tests.support.demo_ha

.PHONY: style
style: install ## check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: types
types: install ## check types
	$(BIN)/mypy

.PHONY: format
format: install ## format the code, and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ENGINE ?= $(shell command -v podman || command -v buildah || command -v docker)
BASE ?= localhost/egress-proxy-base:trixie
BASE_PYTHON ?= 3.13
WHEELS := build/wheels/for-$(BASE_PYTHON)
export ENGINE BASE

$(WHEELS): images/requirements.txt images/requirements-build.txt | install
	PYTHON=$(BIN)/python images/wheels.sh $(BASE_PYTHON)
	@touch $@

.PHONY: images
images: $(WHEELS) ## build both images (ENGINE, BASE and BASE_PYTHON: images/README.md)
	images/build.sh

$(VENV)/image-tools: images/tools.txt | install
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement images/tools.txt
	@touch $@

.PHONY: base
base: ## build the base image from Debian packages, with their latest updates
	images/base.sh $(BASE)

.PHONY: lock
lock: $(VENV)/image-tools ## pin the images' requirements again (UPGRADE=1: to the latest)
	$(BIN)/python images/lock.py $(if $(UPGRADE),--upgrade)

.PHONY: manifests
manifests: $(VENV)/image-tools ## render and validate the manifests of deploy/
	$(BIN)/pytest tests/image/test_manifests.py

# The tests of images and manifests use libraries of their own.
types: $(VENV)/image-tools

.PHONY: test-image
test-image: images $(VENV)/image-tools ## build the images and test them in real containers
	$(BIN)/pytest tests/image

.PHONY: test-cluster
test-cluster: $(VENV)/image-tools ## test against the real Kubernetes control plane (KUBEBUILDER_ASSETS)
	$(BIN)/pytest tests/cluster

.PHONY: sbom
sbom: images ## write the images' bills of materials (CycloneDX) into dist/
	images/sbom.sh

.PHONY: audit
audit: $(VENV)/image-tools ## look up the pinned packages in the advisory database (needs the internet)
	for lock in images/requirements-build.txt images/requirements.txt; do \
		$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement $$lock || exit; \
	done

.PHONY: release-check
release-check: sbom manifests ## list what is missing for a release
	images/release-check.sh

# Measure with a distribution's own Python, as in the images, where it is new enough.
BENCH_PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo /usr/bin/python3 || echo $(PYTHON))
BENCH_VENV := .venv-bench
ifdef QUICK
BENCH := --rounds $(or $(ROUNDS),1) --seconds 1 --idle 2000 --out $(or $(OUT),build/bench)
else
BENCH := --rounds $(or $(ROUNDS),5) --out $(or $(OUT),docs/benchmarks)
endif
ifdef PEERS
BENCH += --peers $(PEERS)
endif

BENCH_PLANES = $(BENCH_VENV)/bin/python -m bench.planes $(if $(QUICK),--seconds 1) \
	--rounds $(or $(ROUNDS),$(if $(QUICK),1,5)) --out $(or $(OUT),$(if $(QUICK),build/bench,docs/benchmarks))/planes.md

$(BENCH_VENV)/installed: pyproject.toml
	$(BENCH_PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The Debian suite of the other proxies. The default has the newest HAProxy; trixie is stable.
BENCH_SUITE ?= experimental
export BENCH_SUITE

.PHONY: bench
bench: $(BENCH_VENV)/installed ## compare with other proxies (QUICK=1: one minute; ROUNDS, PEERS, OUT, BENCH_SUITE)
	$(BENCH_VENV)/bin/python -m bench $(BENCH)
	$(if $(PEERS),,$(BENCH_PLANES))

.PHONY: bench-steps
bench-steps: $(BENCH_VENV)/installed ## compare with earlier commits of this project (STEPS="hash hash"; ROUNDS, LOADS, OUT)
	for step in $(STEPS); do \
		test -e build/steps/$$step || git worktree add --quiet --detach build/steps/$$step $$step; \
		$(BENCH_VENV)/bin/python -c "import tomllib; \
			print(*tomllib.load(open('build/steps/$$step/pyproject.toml', 'rb'))['project']['dependencies'])" \
		| xargs $(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check; done
	$(BENCH_VENV)/bin/python -m bench --rounds $(or $(ROUNDS),9) --seconds 2 --idle 0 \
		--loads $(or $(LOADS),kept new latency) --peers egress-proxy haproxy nginx \
		--earlier $(STEPS:%=build/steps/%) --out $(or $(OUT),build/bench)
	git worktree list --porcelain | sed -n 's|^worktree \(.*/build/steps/.*\)|\1|p' | xargs -r -n1 git worktree remove --force

.PHONY: bench-scaling
bench-scaling: $(BENCH_VENV)/installed ## compare two processes with one, and HAProxy's threads
	$(BENCH_VENV)/bin/python -m bench.scaling --rounds $(or $(ROUNDS),5)

.PHONY: bench-planes
bench-planes: $(BENCH_VENV)/installed ## compare the data planes and redirect mode with plain forwarding (ROUNDS, OUT)
	$(BENCH_PLANES)

.PHONY: bench-ha
bench-ha: install $(BENCH_VENV)/installed ## measure the time without the address when something fails (ROUNDS, OUT)
	$(BIN)/python -m bench.availability --command $(BENCH_VENV)/bin/egress-proxy \
		--rounds $(or $(ROUNDS),10) --out $(or $(OUT),docs/benchmarks/ha.md)

.PHONY: bench-syscalls
bench-syscalls: $(BENCH_VENV)/installed ## count the system calls per connection
	$(BENCH_VENV)/bin/python -m bench --syscalls $(if $(PEERS),--peers $(PEERS))
