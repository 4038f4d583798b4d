"""58 nights of Korean film reviews, scored one by one: false alarms, planted faults, quality and shares.

    python -m tests.recipes.nights DATA --folder FOLDER           # every step that FOLDER lacks
    python -m tests.recipes.nights DATA --folder FOLDER --tell    # the tables of docs/nights.md, of what was found

A step writes one JSON file. Nights are scored by `bertray.score` into one output, July with its labels, August without:
these come later, by `truth`. Faults are planted in texts of August and scored again by the same model; the profiles of
such nights are made by the code that the actors run, which `check_profiles` compares with those of the ledger.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import bertray
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.outputs import ledger
from bertray.outputs.committed_rows import read_rows
from bertray.outputs.night_profile import Moments, NightProfile, packed
from bertray.reviews.clean import clean_texts
from bertray.reviews.ngrams import read_seen_ngrams
from bertray.reviews.split import group_hash
from bertray.reviews.writing_system import dominant_script
from bertray.scoring.profiled import ngram_share, scored_profile, text_profile
from bertray.trust.drift import Reference
from bertray.trust.nights import Night
from bertray.trust.sampling import stratified_draw
from bertray.trust.shares import Answers, GroupSums, corrected_by_answers

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "nights.md"
BEGIN, END = "<!-- made by tests.recipes.nights: begin -->\n", "<!-- made by tests.recipes.nights: end -->\n"
TRAIN_ROWS, MAX_LENGTH = 12_000, 64
REPEATS = 20  # nights of each fault, and random splits
SMALL = 300  # rows of a small night
BIG = (20_000, 1_000_000)
COST_ROWS, COST_ROUNDS = 6_000, 6
LABELS = ("negative", "neutral", "positive")
ONE_PROCESS: dict[str, Any] = {"in_process_rows": 1_000_000_000, "threads": 1}
QUIET: dict[str, Any] = {"explain": 0}


@dataclass(frozen=True)
class Rows:
    """Reviews of a night as they came in.

    Args:
        labels: true ones.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def taken(self, at: Sequence[int]) -> Rows:
        return Rows(tuple(self.texts[n] for n in at), tuple(self.labels[n] for n in at))


@dataclass(frozen=True)
class Profiled:
    """Rows of a night with what the model made of them.

    Args:
        texts: cleaned, without those that scoring refuses.
        probs: float32 [N, C].
    """

    texts: tuple[str, ...]
    probs: np.ndarray

    def taken(self, at: Sequence[int]) -> Profiled:
        return Profiled(tuple(self.texts[n] for n in at), self.probs[list(at)])


class Place:
    """Folder of the run, its data, and the model once it is trained."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data / "naver_movies", folder
        self.others = data
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def output(self) -> str:
        return str(self.folder / "scored")

    @property
    def model(self) -> str:
        return str(self.folder / "run" / "model")

    def json(self, step: str) -> Any:
        return json.loads((self.folder / f"{step}.json").read_text(encoding="utf-8"))

    @cached_property
    def by_date(self) -> dict[str, pa.Table]:
        """July of the test set and the files of August, by date."""
        july = pq.read_table(self.data / "test.parquet")
        days = np.array([str(day)[:10] for day in july["date"].to_pylist()])
        found = {str(day): july.filter(pa.array(days == day)) for day in np.unique(days)}
        for path in sorted((self.data / "incoming").glob("*.parquet")):
            found[path.stem.rpartition("_")[2]] = pq.read_table(path)
        return found

    @property
    def july(self) -> list[str]:
        return [day for day in self.by_date if day < "2015-08"]

    @property
    def august(self) -> list[str]:
        return [day for day in self.by_date if day >= "2015-08"]

    def rows(self, day: str) -> Rows:
        table = self.by_date[day]
        return Rows(tuple(text or "" for text in table["text"].to_pylist()), tuple(table["label"].to_pylist()))

    @cached_property
    def nights(self) -> dict[str, Night]:
        """Nights of the ledger by date."""
        runs = ledger.current(ledger.read_ledger(open_store(self.output)))
        return {run.slot.removeprefix("dt="): Night.of(run) for run in runs}

    @cached_property
    def classifier(self) -> bertray.Classifier:
        return bertray.Classifier.load(self.model)

    def scored(self, texts: Sequence[str]) -> Profiled:
        """Texts as a night scores them."""
        cleaned = clean_texts(pa.array(texts, pa.string()), self.classifier.info.cleaning)
        kept = cleaned.filter(pc.not_equal(cleaned, ""))
        probs = self.classifier.predict_proba(kept, on_refused="null")
        known = np.isfinite(probs).all(axis=1)
        return Profiled(tuple(kept.filter(pa.array(known)).to_pylist()), probs[known])

    @cached_property
    def seen(self) -> Any:
        return read_seen_ngrams(resolve_model(self.model))

    def night(self, rows: Profiled) -> Night:
        """Night of some scored rows, its profile made by the code of the actors."""
        texts = pa.array(rows.texts, pa.string())
        profile = text_profile(texts, group_hash(texts), ngram_share(len(texts)), self.seen)
        profile += scored_profile(rows.probs, self.classifier.labels)
        scripts = Counter(dominant_script(texts).to_pylist())
        return Night(0, "dt=x", "dt=x", self.classifier.model_version, len(texts), scripts, profile)


# --- steps -----------------------------------------------------------------------------------------------------------


def model(place: Place) -> dict[str, Any]:
    """Train on rows before July in the mix of labels of production; validation rows are the first half of July."""
    validation = pa.concat_tables([place.by_date[day] for day in place.july if day <= "2015-07-15"])
    mix = Counter(validation["label"].to_pylist())
    train = pq.read_table(place.data / "train.parquet")
    rng, labels = np.random.default_rng(0), np.array(train["label"].to_pylist())
    rows = [
        rng.choice(np.flatnonzero(labels == label), round(TRAIN_ROWS * mix[label] / validation.num_rows), replace=False)
        for label in LABELS
    ]
    pq.write_table(train.take(pa.array(np.sort(np.concatenate(rows)))), place.folder / "train.parquet")
    pq.write_table(validation, place.folder / "validation.parquet")
    result = bertray.train(
        str(place.folder / "train.parquet"),
        validation=str(place.folder / "validation.parquet"),
        output=str(place.folder / "run"),
        max_length=MAX_LENGTH,
        labels=list(LABELS),
        report=QUIET,
        workers=ONE_PROCESS,
    )
    return {"accuracy": result.metrics["accuracy"].value, "notes": list(result.notes), "rows": TRAIN_ROWS}


def nights(place: Place) -> list[dict[str, Any]]:
    """Score night by night; accept July as the reference; give the labels of August when all is scored."""
    inbox = place.folder / "inbox"
    inbox.mkdir(exist_ok=True)
    keys: dict[str, Any] = {"model": place.model, "input": str(inbox), "output": place.output}
    for day, table in place.by_date.items():
        columns = ["id", "text", "label"] if day in place.july else ["id", "text"]
        pq.write_table(table.select(columns), inbox / f"{day}.parquet")
        if day == place.august[0]:
            accepted = f"dt={place.july[0]}..dt={place.july[-1]}"
            bertray.score(output=place.output, drift={"accept": accepted, "reason": "July is the history"})
        bertray.score(**keys, slot=f"dt={day}", report=QUIET, workers=ONE_PROCESS)
    late = place.folder / "truth.parquet"
    pq.write_table(pa.concat_tables([place.by_date[day].select(["id", "label"]) for day in place.august]), late)
    bertray.score(output=place.output, truth=[str(late)])
    return [_told(place, day) for day in place.by_date]


def _told(place: Place, day: str) -> dict[str, Any]:
    """A night by its report.json, and by its true labels."""
    report = json.loads((Path(place.output) / f"reports/dt={day}/run=1/report.json").read_text(encoding="utf-8"))
    store = open_store(place.output)
    run = next(run for run in ledger.current(ledger.read_ledger(store)) if run.slot == f"dt={day}")
    rows = read_rows(store, run, ["id", "label", "prob_negative"]).to_pylist()
    truth = dict(zip(place.by_date[day]["id"].to_pylist(), place.by_date[day]["label"].to_pylist(), strict=True))
    true, said = [truth[row["id"]] for row in rows], [row["label"] for row in rows]
    quality = report["quality"]
    return {
        "day": day,
        "rows": len(rows),
        "state": report["drift"]["state"],
        "alarms": [[shift["kind"], shift["name"]] for shift in report["drift"]["shifts"] if shift["alarm"]],
        "void": quality["void"],
        "estimate": quality["accuracy"],
        "macro_f1_estimate": quality["macro_f1"],
        "accuracy": float(np.mean([a == b for a, b in zip(true, said, strict=True)])),
        "macro_f1": _macro_f1(true, said),
        "negative": float(np.mean([label == "negative" for label in true])),
        "counted": float(np.mean([label == "negative" for label in said])),
        "mean_probability": float(np.mean([row["prob_negative"] for row in rows])),
    }


def _macro_f1(true: Sequence[str], said: Sequence[str]) -> float:
    found = []
    for label in LABELS:
        both = sum(a == b == label for a, b in zip(true, said, strict=True))
        found.append(2 * both / (true.count(label) + said.count(label)))
    return float(np.mean(found))


def check_profiles(place: Place) -> dict[str, float]:
    """Largest difference of a mean between profiles of the ledger and those of `Place.night`, over August."""
    largest = 0.0
    for day in place.august:
        mine, theirs = place.night(place.scored(place.rows(day).texts)), place.nights[day]
        assert mine.profile is not None
        assert theirs.profile is not None
        assert mine.rows == theirs.rows
        assert dict(mine.scripts) == dict(theirs.scripts)
        assert mine.profile.ngram_rows == theirs.profile.ngram_rows
        for name, moments in theirs.profile.moments.items():
            largest = max(largest, abs(moments.mean - mine.profile.moments[name].mean))
    assert largest < 1e-4, largest
    return {"largest": largest}


def splits(place: Place) -> dict[str, Any]:
    """Alarms of nights that are judged by others drawn at random, [splits]."""
    found: dict[str, Any] = {}
    every = list(place.nights.values())
    for size in (31, 10):
        rng, alarms = np.random.default_rng(1), []
        for _ in range(REPEATS):
            order = rng.permutation(len(every))
            reference = Reference([every[n] for n in order[:size]])
            alarms.append(sum(_alarms(reference, every[n]) for n in order[31:58]))
        found[str(size)] = alarms
    return found


def _alarms(reference: Reference, night: Night) -> bool:
    return any(shift.is_alarm for shift in reference.judge(night))


# --- faults ----------------------------------------------------------------------------------------------------------

ENGLISH = "airline_tweets/all.parquet"
CHINESE = "online_shopping_10_cats/test.parquet"
Fault = Callable[[Rows, np.random.Generator], Rows]


def replaced(share: float, texts_of: Callable[[Sequence[str], np.random.Generator], Sequence[str]]) -> Fault:
    """Other texts in a share of the rows."""

    def fault(rows: Rows, rng: np.random.Generator) -> Rows:
        at = rng.choice(len(rows.texts), round(share * len(rows.texts)), replace=False)
        texts = list(rows.texts)
        for n, text in zip(at, texts_of([rows.texts[n] for n in at], rng), strict=True):
            texts[n] = text
        return Rows(tuple(texts), rows.labels)

    return fault


def relabelled(label: str, share: float) -> Fault:
    """Another mix of labels, by leaving out rows."""

    def fault(rows: Rows, rng: np.random.Generator) -> Rows:
        mine = np.flatnonzero([one == label for one in rows.labels])
        others = np.flatnonzero([one != label for one in rows.labels])
        kept = rng.choice(others, min(len(others), round(len(mine) * (1 - share) / share)), replace=False)
        return rows.taken(np.sort(np.concatenate([mine, kept])).tolist())

    return fault


def spam(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Advertisements with links and numbers."""
    starts = ("무료 영화 다운로드", "카지노 첫충 이벤트", "대출 상담 환영", "최신 영화 바로보기", "부업 하실 분 모집")
    ends = ("지금 클릭", "24시간 상담", "카톡 문의 주세요", "당일 지급", "회원가입 하세요")
    return [
        f"{rng.choice(starts)} www.{rng.choice(['movie', 'bet', 'cash'])}{rng.integers(10, 99)}.com "
        f"{rng.choice(ends)} {rng.integers(1000, 9999)}"
        for _ in texts
    ]


def wrong_code_page(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [text.encode("utf-8").decode("cp949", "replace") for text in texts]


def as_latin(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [text.encode("utf-8").decode("latin-1") for text in texts]


def cut(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [" ".join(text.split()[:5]) for text in texts]


def half(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [text[: len(text) // 2] for text in texts]


def copied(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return ["정말 재미있게 잘 봤습니다 강추합니다"] * len(texts)


TEXT_FAULTS = (spam, wrong_code_page, as_latin, cut, half, copied)


def faults(place: Place) -> dict[str, Fault]:
    def of(path: str) -> Callable[[Sequence[str], np.random.Generator], list[str]]:
        pool = pq.read_table(place.others / path, columns=["text"])["text"].to_pylist()
        return lambda texts, rng: [pool[n] for n in rng.choice(len(pool), len(texts), replace=False)]

    english, chinese = of(ENGLISH), of(CHINESE)
    return {
        "none": replaced(0.0, english),
        "English in 2 %": replaced(0.02, english),
        "English in 5 %": replaced(0.05, english),
        "English in 10 %": replaced(0.10, english),
        "Chinese in 5 %": replaced(0.05, chinese),
        "cut to five words": replaced(1.0, cut),
        "half of each text lost": replaced(1.0, half),
        "UTF-8 read as code page 949 in 10 %": replaced(0.10, wrong_code_page),
        "UTF-8 read as Latin-1 in 10 %": replaced(0.10, as_latin),
        "one text in 10 %": replaced(0.10, copied),
        "one text in 3 %": replaced(0.03, copied),
        "negatives twice as many (14.5 to 29 %)": relabelled("negative", 0.29),
        "positives 1.3 times (58 to 75 %)": relabelled("positive", 0.75),
        "spam in 5 %": replaced(0.05, spam),
        "spam in 2 %": replaced(0.02, spam),
    }


def planted(place: Place) -> dict[str, Any]:
    """By fault, nights that alarm as they are and with 300 of their rows, and the statistics that did."""
    reference = Reference([place.nights[day] for day in place.july])
    known: dict[str, Profiled] = {}
    found: dict[str, Any] = {}
    for number, (name, fault) in enumerate(faults(place).items()):
        whole, small, why = 0, 0, Counter[str]()
        for repeat, day in enumerate(place.august[:REPEATS]):
            rng = np.random.default_rng([number, repeat])
            rows = _scored_once(place, fault(place.rows(day), rng).texts, known)
            shifts = [shift for shift in reference.judge(place.night(rows)) if shift.is_alarm]
            why.update({shift.name for shift in shifts})
            whole += bool(shifts)
            few = rng.choice(len(rows.texts), min(SMALL, len(rows.texts)), replace=False)
            small += _alarms(reference, place.night(rows.taken(few.tolist())))
        found[name] = {"whole": whole, "small": small, "of": REPEATS, "why": dict(why.most_common(4))}
        print(name, found[name], flush=True)
    return found


def _scored_once(place: Place, texts: Sequence[str], known: dict[str, Profiled]) -> Profiled:
    """Texts as a night scores them; a text that was scored before is not scored again."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    for start in range(0, len(new), 4096):
        for text in new[start : start + 4096]:
            known[text] = Profiled((), np.zeros((0, 3), np.float32))
        cleaned = clean_texts(pa.array(new[start : start + 4096], pa.string()), place.classifier.info.cleaning)
        probs = place.classifier.predict_proba(cleaned, on_refused="null")
        for text, clean, prob in zip(new[start : start + 4096], cleaned.to_pylist(), probs, strict=True):
            if np.isfinite(prob).all():
                known[text] = Profiled((clean,), prob[None])
    rows = [known[text] for text in texts]
    return Profiled(tuple(text for row in rows for text in row.texts), np.concatenate([row.probs for row in rows]))


# --- large nights ----------------------------------------------------------------------------------------------------


def mixed(parts: Sequence[tuple[float, Night]], rows: int, rng: np.random.Generator) -> Night:
    """A night of many rows whose sums are drawn around a mixture of real ones; copies of texts are left out.

    Means are normal with the variance of `rows` rows, histograms multinomial, n-grams of at most 20,000 rows Poisson.
    """
    profiles = [(weight, night.profile) for weight, night in parts if night.profile is not None]
    moments = {}
    for name in profiles[0][1].moments:
        mean = sum(weight * profile.moments[name].mean for weight, profile in profiles)
        square = sum(
            weight * profile.moments[name].squares / max(profile.moments[name].rows, 1) for weight, profile in profiles
        )
        variance = max(square - mean**2, 0.0)
        drawn = mean + rng.normal() * np.sqrt(variance / rows)
        moments[name] = Moments(rows, float(rows * drawn), float(rows * (variance + drawn**2)))
    histograms = {}
    for name in profiles[0][1].histograms:
        shares = sum(weight * (counts := profile.histogram(name)) / counts.sum() for weight, profile in profiles)
        histograms[name] = packed(rng.multinomial(rows, shares / shares.sum()))
    sampled = min(rows, 20_000) // 2
    means = sum(weight * profile.ngram_sums.sum(axis=0) / sum(profile.ngram_rows) for weight, profile in profiles)
    grams = 60  # n-grams of a text that say something new: one text's frequencies are drawn together
    sums = np.stack([rng.poisson(means * sampled * grams) / grams for _ in range(2)]).astype(np.float32)
    scripts: Counter[str] = Counter()
    for weight, night in parts:
        for script, count in night.scripts.items():
            scripts[script] += round(weight * rows * count / night.rows)
    profile = NightProfile(
        rows=rows, moments=moments, histograms=histograms, ngrams=packed(sums), ngram_rows=(sampled, sampled)
    )
    return Night(0, "dt=x", "dt=x", parts[0][1].model_version, rows, scripts, profile)


def large(place: Place) -> dict[str, Any]:
    """False alarms and hits of nights of many rows: half one real night, half all of them."""
    # What a small night differs by is mostly sampling, which a large one would not have.
    every = [night for night in place.nights.values() if night.rows >= SMALL]
    together, rng = _together(every), np.random.default_rng(2)
    pool = [text for day in place.august for text in place.rows(day).texts]
    pool = [pool[n] for n in rng.choice(len(pool), 1000, replace=False)]
    english = pq.read_table(place.others / ENGLISH, columns=["text"])["text"].to_pylist()[:1000]
    negative = [
        text
        for day in place.august
        for text, label in zip(place.rows(day).texts, place.rows(day).labels, strict=True)
        if label == "negative"
    ][:1000]
    of_fault = {
        "English in 1 %": (0.01, english),
        "UTF-8 read as code page 949 in 1 %": (0.01, wrong_code_page(pool, rng)),
        "negatives twice as many": (0.17, negative),
        "spam in 5 %": (0.05, spam(pool, rng)),
        "spam in 1 %": (0.01, spam(pool, rng)),
    }
    whole = {name: (share, place.night(place.scored(texts))) for name, (share, texts) in of_fault.items()}
    found: dict[str, Any] = {}
    for rows in BIG:
        alarms, hits = [], Counter[str]()
        for _ in range(REPEATS):
            order = rng.permutation(len(every))
            big = [mixed([(0.5, every[n]), (0.5, together)], rows, rng) for n in order]
            reference = Reference(big[:31])
            alarms.append(sum(_alarms(reference, night) for night in big[31:]))
            for name, (share, fault) in whole.items():
                tonight = [((1 - share) / 2, every[order[31]]), ((1 - share) / 2, together), (share, fault)]
                hits[name] += _alarms(reference, mixed(tonight, rows, rng))
        found[str(rows)] = {"alarms": alarms, "hits": {name: hits[name] for name in whole}}
        print(rows, found[str(rows)], flush=True)
    return found


def _together(nights: Sequence[Night]) -> Night:
    """All rows of some nights as one."""
    profile, scripts = NightProfile(), Counter[str]()
    for night in nights:
        assert night.profile is not None
        profile, scripts = profile + night.profile, scripts + Counter(night.scripts)
    return replace(nights[0], rows=profile.rows, scripts=scripts, profile=profile)


# --- answers ---------------------------------------------------------------------------------------------------------


def answered(place: Place) -> dict[str, Any]:
    """Share of negatives by 100 answers of each night of August, ten draws each, beside the answers alone."""
    store, held, widths, alone, errors = open_store(place.output), [], [], [], []
    for run in ledger.current(ledger.read_ledger(store)):
        day = run.slot.removeprefix("dt=")
        if day not in place.august:
            continue
        table = read_rows(store, run, ["id", *[f"prob_{label}" for label in LABELS]])
        probs = np.column_stack([table[f"prob_{label}"].to_numpy() for label in LABELS]).astype(float)
        truth = dict(zip(place.by_date[day]["id"].to_pylist(), place.by_date[day]["label"].to_pylist(), strict=True))
        true = np.array([LABELS.index(truth[id_]) for id_ in table["id"].to_pylist()])
        counted = np.bincount(probs.argmax(axis=1), minlength=3)
        sums = GroupSums(len(probs), counted, probs.sum(axis=0), (probs * (1 - probs)).sum(axis=0))
        for seed in range(10):
            draw = stratified_draw(probs, 100, seed)
            answers = Answers.of_draw(true[draw.rows], probs[draw.rows], draw.probability)
            found = corrected_by_answers(sums, answers)[0]
            share = float((true == 0).mean())
            held.append(bool(found.low <= share <= found.high))
            widths.append(found.high - found.low)
            errors.append(found.value - share)
            sample = (np.random.default_rng(seed).choice(true, 100, replace=False) == 0).mean()
            alone.append(2 * 1.96 * np.sqrt(sample * (1 - sample) / 100 * (1 - 100 / len(true))))
    return {
        "draws": len(held),
        "held": float(np.mean(held)),
        "width": float(np.mean(widths)),
        "alone": float(np.mean(alone)),
        "bias": float(np.mean(errors)),
    }


# --- cost ------------------------------------------------------------------------------------------------------------


def cost(place: Place) -> dict[str, Any]:
    """CPU seconds of a night with and without its profile, in turn, and within the code that makes it; one thread.

    Of an encoder of 22 M parameters on tweets, and of the TF-IDF model of the nights on film reviews. The speed of a
    small machine moves by more than a profile costs: what is spent within its code is measured in the same run.
    """
    tweets = pq.read_table(place.others / ENGLISH, columns=["id", "text", "label"])
    train, rows = place.folder / "tweets_train.parquet", place.folder / "tweets.parquet"
    pq.write_table(tweets.slice(0, 800), train)
    pq.write_table(tweets.slice(800, COST_ROWS).select(["id", "text"]), rows)
    trained = bertray.train(
        str(train),
        output=str(place.folder / "tweets"),
        training={"method": "features"},
        report=QUIET,
        workers=ONE_PROCESS,
    )
    films = place.folder / "films.parquet"
    pq.write_table(pq.read_table(place.folder / "train.parquet", columns=["id", "text"]), films)
    return {
        "encoder": _cost_of(place, trained.model, rows),
        "tfidf": _cost_of(place, str(place.folder / "run" / "model"), films),
    }


def _cost_of(place: Place, model: str, rows: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"with": [], "without": [], "within": []}
    output, inside = place.folder / "cost", [0.0]
    made = {f"bertray.scoring.{name}": timed(attribute(name), inside) for name in PROFILING}
    for number in range(COST_ROUNDS + 1):
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            shutil.rmtree(output, ignore_errors=True)
            inside[0] = 0.0
            with ExitStack() as patched:
                if kind == "without":
                    patched.enter_context(mock.patch("bertray.runs.night.ngram_share", return_value=None))
                for name, function in made.items():
                    patched.enter_context(mock.patch(name, function))
                started = time.process_time()
                bertray.score(model=model, input=str(rows), output=str(output), report=QUIET, workers=ONE_PROCESS)
                spent = time.process_time() - started
            if number:  # the first round warms up
                seconds[kind].append(spent)
                seconds["within"] += [inside[0]] if kind == "with" else []
    print(seconds, flush=True)
    return {"rows": pq.read_metadata(rows).num_rows, **seconds}


PROFILING = ("read_unit.text_profile", "row_makers.profile_of")


def attribute(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    found: Callable[..., Any] = getattr(import_module(f"bertray.scoring.{module}"), function)
    return found


def timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """The function, whose CPU seconds are added to `total`."""

    def call(*args: Any, **keys: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **keys)
        finally:
            total[0] += time.process_time() - started

    return call


# --- telling ---------------------------------------------------------------------------------------------------------

STEPS: Mapping[str, Callable[[Place], Any]] = {
    "model": model,
    "nights": nights,
    "profiles": check_profiles,
    "splits": splits,
    "planted": planted,
    "large": large,
    "answered": answered,
    "cost": cost,
}


def tables(found: Mapping[str, Any]) -> str:
    """The tables of the page."""
    august = [night for night in found["nights"] if night["day"] >= "2015-08"]
    told = [
        f"The model: `training.method=auto` on {found['model']['rows']:,} reviews before July, in the mix of labels of "
        f"production, calibrated on the first half of July: accuracy there {_percent(found['model']['accuracy'])}.",
        *[note for note in found["model"]["notes"] if "auto" in note],
        "Every night was scored by `bertray score`, July with its labels; those of August came when all was scored.",
        "",
        "| ordinary nights | false alarms |",
        "|---|---|",
        f"| July accepted as the reference, 27 nights of August | {_nights(august)} |",
        *[_split(found["splits"][size], size) for size in ("31", "10")],
        *[
            f"| simulated nights of {rows:,} rows, 31 drawn at random as the reference, {REPEATS} times | "
            f"{_alarm_rate(found['large'][str(rows)]['alarms'])} |"
            for rows in BIG
        ],
        "",
        f"| planted fault, {REPEATS} nights each | found, nights as they are | found, {SMALL} rows |",
        "|---|---|---|",
        *[
            f"| {name if name != 'none' else 'none: the nights as they came'} | {_rate(of['whole'], of['of'])} | "
            f"{_rate(of['small'], of['of'])} |"
            for name, of in found["planted"].items()
        ],
        "",
        f"| planted fault, {REPEATS} simulated nights | " + " | ".join(f"{rows:,} rows" for rows in BIG) + " |",
        "|---|---|---|",
        *[
            f"| {name} | " + " | ".join(_rate(found["large"][str(rows)]["hits"][name], REPEATS) for rows in BIG) + " |"
            for name in found["large"][str(BIG[0])]["hits"]
        ],
        "",
        "Large nights are sums: half one real night, half all of them, drawn with the noise of so many rows; copies of "
        "texts are left out.",
        "",
        *_quality(august, found["answered"]),
        "",
        *([_cost(found["cost"]), ""] if "cost" in found else []),
        "| night | rows | compared | accuracy without labels | true | negatives counted | by mean probability | true |",
        "|---|---|---|---|---|---|---|---|",
        *[_night(night) for night in august],
    ]
    return "\n".join(told) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rate(hits: int, of: int) -> str:
    return f"{100 * hits / of:.0f} %"


def _nights(august: Sequence[Mapping[str, Any]]) -> str:
    alarmed = [night for night in august if night["state"] == "alarm"]
    if not alarmed:
        return "none"
    why = "; ".join(
        f"{night['day'][5:]}: {', '.join(sorted({name for _, name in night['alarms']}))}" for night in alarmed
    )
    return f"{len(alarmed)} ({why})"


def _split(alarms: Sequence[int], size: str) -> str:
    what = f"{size} nights drawn at random as the reference, 27 others judged, {len(alarms)} times"
    return f"| {what} | {_alarm_rate(alarms)} |"


def _alarm_rate(alarms: Sequence[int]) -> str:
    return f"{np.mean(alarms):.1f} on average; at most one in {100 * np.mean(np.array(alarms) <= 1):.0f} %"


def _quality(august: Sequence[Mapping[str, Any]], answers: Mapping[str, Any]) -> list[str]:
    shown = [night for night in august if not night["void"]]

    def held(estimate: str, truth: str) -> str:
        inside = sum(night[estimate]["low"] <= night[truth] <= night[estimate]["high"] for night in shown)
        width = np.mean([night[estimate]["high"] - night[estimate]["low"] for night in shown])
        error = np.mean([abs(night[estimate]["value"] - night[truth]) for night in shown])
        return (
            f"interval held the truth in {inside} of {len(shown)}, {100 * width:.1f} points wide; mean error "
            f"{100 * error:.1f} points"
        )

    def off(key: str) -> str:
        errors = np.array([night[key] - night["negative"] for night in august])
        return f"{100 * errors.mean():+.1f} points on average, mean error {100 * np.abs(errors).mean():.1f}"

    return [
        "| estimate, nights of August | result |",
        "|---|---|",
        f"| accuracy without labels, July as labelled nights | {held('estimate', 'accuracy')} |",
        f"| macro F1 without labels | {held('macro_f1_estimate', 'macro_f1')} |",
        f"| share of negatives by counting predicted labels | {off('counted')} |",
        f"| by the mean probability | {off('mean_probability')} |",
        f"| by 100 answers drawn with known probabilities, {answers['draws']} draws | interval held the truth in "
        f"{_percent(answers['held'])}, {100 * answers['width']:.1f} points wide; the answers alone: "
        f"{100 * answers['alone']:.1f} points |",
    ]


def _cost(cost: Mapping[str, Any]) -> str:
    titles = {"encoder": "tweets, an encoder of 22 M parameters", "tfidf": "film reviews, TF-IDF alone"}
    lines = [
        "| CPU seconds of a night on one thread, medians of rounds in turn | rows | with its profile | without | "
        "within the code that makes it |",
        "|---|---|---|---|---|",
    ]
    for name, title in titles.items():
        of = cost[name]
        with_it, without, within = (float(np.median(of[key])) for key in ("with", "without", "within"))
        share = float(np.median(np.array(of["within"]) / np.array(of["with"])))
        lines.append(f"| {title} | {of['rows']:,} | {with_it:.1f} | {without:.1f} | {within:.2f} ({_percent(share)}) |")
    return "\n".join(lines)


def _night(night: Mapping[str, Any]) -> str:
    estimate = night["estimate"]
    quality = (
        "void"
        if night["void"]
        else f"{_percent(estimate['value'])} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"
    )
    figures = [_percent(night[key]) for key in ("accuracy", "counted", "mean_probability", "negative")]
    return f"| {night['day']} | {night['rows']:,} | {night['state']} | {quality} | {' | '.join(figures)} |"


def tell(found: Mapping[str, Any], page: Path) -> None:
    """Write the tables into the page, between their markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{tables(found)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with naver_movies/, airline_tweets/ and so on")
    parser.add_argument("--folder", type=Path, default=ROOT / "recipes-run" / "nights", help="of all that is written")
    parser.add_argument("--tell", action="store_true", help="only write the tables")
    wanted = parser.parse_args()
    place = Place(wanted.data.resolve(), wanted.folder.resolve())
    if wanted.tell:
        done = [step for step in STEPS if (place.folder / f"{step}.json").is_file()]
        tell({step: place.json(step) for step in done}, PAGE)
        return
    for name, step in STEPS.items():
        target = place.folder / f"{name}.json"
        if not target.is_file():
            found = step(place)
            target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
