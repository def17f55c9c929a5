# make book: build the site.   make test: prove it.   Both start from a fresh clone with Python and make alone.
PYTHON ?= python3
BIN := .venv/bin
NAME ?= lora_moby
PORT ?= 8000
# the chapter that `make lab` opens
CHAPTER ?= 01_cost
WHEEL := _build/wheel
# processes of the tests; each runs on one thread
JOBS ?= 2
export PYTHONHASHSEED = 0
export TOKENIZERS_PARALLELISM = false
export PYDEVD_DISABLE_FILE_VALIDATION = 1
# pip compiles nothing: what is imported is compiled then, once, and kept
unexport PYTHONDONTWRITEBYTECODE
book test: export OMP_NUM_THREADS = 1

.PHONY: attack book test notebooks experiments bench clean serve lint unit nbval site lab lab-all wheel

.venv/.stamp: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

book: .venv/.stamp
	$(BIN)/jupyter-book build . -W -n --keep-going
	$(BIN)/python tools/lab.py _build/html/_sources/notebooks
	@echo "The book: file://$(CURDIR)/_build/html/index.html   (or: make serve)"

# the wheel is built while mypy reads; what takes all cores comes one after the other
test: .venv/.stamp
	$(MAKE) -j 2 -O lint wheel
	$(MAKE) unit
	$(MAKE) nbval -o wheel
	$(MAKE) site

lint: .venv/.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py check

attack: .venv/.stamp
	$(BIN)/python tools/attack.py

unit: .venv/.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 20
	$(BIN)/python tools/mutants.py

# the chapters in a folder of their own, where hra is what the wheel holds; `make book` shows
# what was executed here
nbval: wheel
	rm -rf _build/nbval && mkdir _build/nbval
	cp -r notebooks/*.ipynb notebooks/conftest.py notebooks/breaks _build/nbval
	cache=$$($(BIN)/python tools/sphinx_ext/hra_book.py . $(CURDIR)/_build) && cd _build/nbval && \
	  HRA_EXECUTED=$$cache/nbval HRA_SITE_FILES=$$cache/hra_files \
	  $(CURDIR)/$(WHEEL)/bin/python -m pytest -c /dev/null --rootdir . -q -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  -p no:cacheprovider --nbval --nbval-cell-timeout=300 -W ignore --durations 20 .

wheel: .venv/.stamp
	$(BIN)/python tools/wheel_env.py $(WHEEL)

# the readers' notebooks are plain Markdown: tools/jupyter turns MyST's own rendering off
lab: book
	$(BIN)/python tools/lab.py _build/lab --site ../html/ --keep
	JUPYTER_CONFIG_PATH=$(CURDIR)/tools/jupyter $(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR)/_build --LabApp.default_url=/lab/tree/lab/$(CHAPTER).ipynb

# both at a time: in JupyterLab one core waits for the other
site: book
	$(BIN)/python tools/check_lab.py & lab=$$!; $(BIN)/python tools/check_site.py; \
	  site=$$?; wait $$lab && exit $$site

lab-all: book
	$(BIN)/python tools/check_lab.py --all
	$(BIN)/python tools/notebooks.py twice

notebooks: .venv/.stamp
	$(BIN)/python tools/notebooks.py refresh

experiments: .venv/.stamp
	$(BIN)/python -m hra.studies.$(NAME)

bench: .venv/.stamp
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.sampled
	$(BIN)/python -m benchmarks.switch
	$(BIN)/python -m benchmarks.mora
	$(BIN)/python -m benchmarks.losia
	$(BIN)/python -m benchmarks.latency

serve: book
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean:
	rm -rf _build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
