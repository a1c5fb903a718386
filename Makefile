# Everything works on a fresh Debian machine; "make setup" is part of every target.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
KERNELS := $(basename $(notdir $(wildcard src/shardgit/_*.pyx)))

.PHONY: help setup run test cluster cluster-test check format bench bench-smoke bench-peers compare interop fault soak attacks fuzz
.PHONY: git-suite docs wheel clean

help: ## Print this.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

setup: ## Make .venv, install what is missing, build the kernels and protobuf modules.
	@.ci/setup

run: setup ## Import REPO=path (else this project's own history, as demo) into ./data and serve it.
	@REPO='$(REPO)' NAME='$(NAME)' .ci/demo

# In the order of their names: else the long files that hold few tests come last, one core waits. Three for two cores: a
# quarter of the time they waited for servers and disks.
test: setup ## Run all tests, a file a process; JOBS=3.
	@.ci/promtool-setup || true
	@.ci/browser-setup || true
	$(BIN)/pytest -q -n $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder

cluster: setup ## Run a cluster on this machine: etcd, S3, three nodes, a load balancer; see docs/cluster.md.
	@.ci/cluster-setup
	@.ci/balancer-setup || true
	@$(BIN)/python tools/local_cluster.py

cluster-test: setup ## The tests that need etcd and an S3 server, which it installs.
	@.ci/cluster-setup
	$(BIN)/pytest -q -m cluster

check: setup ## Formatting, lint, types, floors and kernel stubs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/stubtest --allowlist tests/stubtest-allowlist.txt $(addprefix shardgit.,$(KERNELS))

format: setup ## Format and sort imports in place.
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup ## Compare with git and others, as ratios: SUITE="imports clones", REPO="path ...", else generated data.
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python bench/run.py $(SUITE) $(foreach repo,$(REPO),--repo '$(repo)') --keep bench/results

bench-smoke: setup ## The same, small and once: does it run at all?
	$(BIN)/python bench/run.py $(SUITE) --smoke --work build/bench-smoke

bench-peers: setup ## Build gitoxide, go-git and JGit for it, where cargo, go and mvn are there.
	$(BIN)/python bench/peers/build.py

compare: setup ## Two revisions of this project, measured in turn: A=main B=. SUITE="imports clones" ROUNDS=5.
	$(BIN)/python bench/compare.py '$(or $(A),main)' '$(or $(B),.)' $(SUITE) --rounds $(or $(ROUNDS),5) \
	  $(foreach repo,$(REPO),--repo '$(repo)')

interop: setup ## Every flow with many Git clients, as a matrix; GIT="path ..." adds versions of git.
	$(BIN)/pytest -q -m interop
	$(BIN)/python tests/interop/run.py $(foreach git,$(GIT),--git '$(git)')

git-suite: setup ## Git's own network tests against shardgit; GIT_SRC=its source, built (make, with curl).
	$(if $(GIT_SRC),,$(error name git's built source: make git-suite GIT_SRC=path))
	$(BIN)/python tests/gitsuite/run.py '$(GIT_SRC)' $(if $(ONLY),--only $(ONLY))

fault: setup ## Kill, starve and simulate: is anything lost? KILLS=1000 SEEDS=10000 JOBS=2. And the longest tests.
	$(BIN)/pytest -q -m heavy --ignore tests/attacks
	$(BIN)/python tests/fault/run.py --kills $(or $(KILLS),1000) --seeds $(or $(SEEDS),10000) --jobs $(or $(JOBS),2)

soak: setup ## Load a server as a host's clients would, one of them hostile, with a reload: MINUTES=10 OUT=soak.json.
	$(BIN)/python bench/soak/run.py --minutes $(or $(MINUTES),10) $(if $(OUT),--out '$(OUT)')

attacks: setup ## All attacks, with those that take more time and memory than make test has.
	$(BIN)/pytest -q -m 'not cluster' tests/attacks

fuzz: setup ## Fuzz all readers under AddressSanitizer; SECONDS_EACH=60, SEEDS="other projects' repositories ...".
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --group fuzz || true
	@$(if $(SEEDS),$(BIN)/python tests/fuzz/corpora.py $(foreach each,$(SEEDS),'$(each)'))
	@$(MAKE) --no-print-directory -C tests/fuzz

docs: setup ## The documentation as a site in build/site, every link and anchor checked.
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install --quiet --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict
	@echo "documentation: build/site/index.html"

wheel: setup ## The sdist and a wheel in dist/, installed apart from this folder and tried; SDIST=0 leaves the sdist untried.
	@SDIST='$(SDIST)' .ci/wheel

clean: ## Remove all that was built; ./data stays.
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	rm -rf src/*.egg-info src/shardgit/v1 src/shardgit/*.so src/shardgit/_*.c src/shardgit/_*.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
