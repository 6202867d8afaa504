"""Every metric of a real trace, computed once more in SQL or pandas from the Parquet file."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from traces import real_trace

from moeworks.analyse.change import change_over_training, overlap
from moeworks.analyse.coactivation import coactivation
from moeworks.analyse.confidence import confidence
from moeworks.analyse.consistency import drift, overlap_by_lag, repeats, run_lengths
from moeworks.analyse.experts import expert_table
from moeworks.analyse.information import mutual_information
from moeworks.analyse.load import batch_load_table, device_balancedness, load_table, max_vio_interval
from moeworks.analyse.neighbours import neighbours
from moeworks.analyse.specialisation import domain_specialisation, vocabulary_specialisation
from moeworks.analyse.vocabulary import top_tokens
from moeworks.analyse.working_set import working_sets
from moeworks.trace import RoutingTrace, count_experts, token_columns, write_trace
from moeworks.trace.block import TraceBlock

LAYER = 9
PLACE = 8
EXPERTS, K = 64, 6


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The real routing; layer 1 stands in for the token ids, which are not known."""
    trace = real_trace()
    (block,) = trace.blocks()
    first = block.layers[0].ids
    tokens = token_columns(
        trace.num_tokens, **vars(block.tokens) | {"token_id": first[:, 0] * 2 + first[:, 1] % 2}
    )
    file = tmp_path_factory.mktemp("real") / "t.parquet"
    write_trace(file, trace.header, TraceBlock(tokens, block.layers))
    return file


@pytest.fixture(scope="module")
def trace(path) -> RoutingTrace:
    return RoutingTrace.open(path)


@pytest.fixture(scope="module")
def long(path) -> pd.DataFrame:
    """A row per assignment of one layer: row, e, rank, weight and the columns of the token."""
    table = duckdb.connect()
    return table.sql(
        f"""select row, document, sequence, position, domain, token_id,
            unnest(ids_{LAYER})::int e, unnest(weights_{LAYER}) w, unnest(range(1, {K + 1})) rank
            from (select row_number() over () - 1 as row, * from '{path}')"""
    ).df()


def sql(query: str, long: pd.DataFrame) -> list[tuple]:
    connection = duckdb.connect()
    connection.register("a", long)
    return connection.sql(query).fetchall()


def test_load(trace, long):
    found = load_table(count_experts(trace))
    ((vio, cv, entropy, dead),) = sql(
        f"""with c as (select e, count(x.e) n from range({EXPERTS}) r(e) left join a x using (e) group by e),
        p as (select n, n / sum(n) over () as p, avg(n) over () as m from c)
        select max(n / m) - 1, stddev_pop(n) / avg(n), sum(case when p > 0 then -p * ln(p) else 0 end),
        count(*) filter (n < 0.01 * m) from p""",
        long,
    )
    assert found.max_vio[PLACE] == pytest.approx(vio)
    assert found.cv[PLACE] == pytest.approx(cv)
    assert found.entropy[PLACE] == pytest.approx(entropy / np.log(EXPERTS))
    assert found.effective_experts[PLACE] == pytest.approx(np.exp(entropy))
    assert found.dead[PLACE] == dead
    counts = long.groupby("e").size().reindex(range(EXPERTS), fill_value=0)
    lorenz = np.r_[0, counts.sort_values().cumsum() / counts.sum()]
    assert found.gini[PLACE] == pytest.approx(1 - (lorenz[1:] + lorenz[:-1]).sum() / EXPERTS)


def test_device_balancedness(trace, long):
    ((balance,),) = sql("select avg(n) / max(n) from (select e // 8 d, count(*) n from a group by d)", long)
    assert device_balancedness(count_experts(trace), 8)[PLACE] == pytest.approx(balance)


def test_interval_of_max_vio(trace, long):
    """The residuals of ratios with pandas, the quantile by scipy."""
    found = max_vio_interval(trace)
    table = long.groupby(["document", "e"]).size().unstack(fill_value=0).reindex(columns=range(EXPERTS))
    table = table.fillna(0)
    fair = table.sum(axis=1) / EXPERTS
    load = table.sum() / fair.sum()
    residual = table.sub(pd.DataFrame(np.outer(fair, load), index=table.index, columns=table.columns))
    size = len(table)
    error = np.sqrt((residual**2).sum() * size / (size - 1)) / fair.sum()
    freedom = round(fair.sum() ** 2 / (fair**2).sum()) - 1
    half = stats.t.ppf(1 - 0.025 / (EXPERTS * trace.num_layers), freedom) * error
    assert found.low[PLACE] == pytest.approx((load - half).max() - 1, rel=1e-4)
    assert found.high[PLACE] == pytest.approx((load + half).max() - 1, rel=1e-4)
    assert found.documents == size == 213


def test_batches(trace, long):
    ((mean,),) = sql(
        f"""with c as (select row // 1000 b, e, count(*) n from a where row < 33000 group by all)
        select avg(m) from (select b, max(n) / ({1000 * K} / {EXPERTS}) - 1 m from c group by b)""",
        long,
    )
    assert batch_load_table(trace, 1000).max_vio[PLACE] == pytest.approx(mean)


def test_coactivation(trace, long):
    rows = sql("select l.e, r.e, count(*) from a l join a r using (row) where l.e <> r.e group by all", long)
    expected = np.zeros((EXPERTS, EXPERTS), int)
    for i, j, n in rows:
        expected[i, j] = n
    found = coactivation(trace)
    assert np.array_equal(found.pairs[PLACE], expected)
    alone = long.groupby("e").size().reindex(range(EXPERTS), fill_value=0).to_numpy()
    np.testing.assert_allclose(found.rate[PLACE] * alone[:, None], expected, atol=1e-6)


def test_domain_specialisation(trace, long):
    found = domain_specialisation(trace, permutations=2)
    domain = long[["row", "domain"]].drop_duplicates().groupby("domain", observed=True).size()
    share = long.groupby(["e", "domain"], observed=True).size().unstack(fill_value=0) / domain
    share = share.reindex(range(EXPERTS), fill_value=0)[list(found.domains)]
    np.testing.assert_allclose(found.specialisation[PLACE], share.to_numpy())
    words = long.groupby(["token_id", "e"]).size() / long.groupby("token_id")["row"].nunique()
    mix = long[["row", "domain", "token_id"]].drop_duplicates()
    mix = mix.groupby(["domain", "token_id"], observed=True).size() / domain
    joined = mix.rename("mix").reset_index().merge(words.rename("p").reset_index(), on="token_id")
    only = (
        (joined["mix"] * joined["p"]).groupby([joined["e"], joined["domain"]], observed=True).sum().unstack()
    )
    only = only.reindex(range(EXPERTS)).fillna(0)[list(found.domains)]
    np.testing.assert_allclose(found.token_only[PLACE], only.to_numpy(), atol=1e-12)


def test_vocabulary(trace, long):
    found = vocabulary_specialisation(trace, LAYER, min_count=50)
    often = long.groupby("token_id")["row"].nunique()
    often = often[often >= 50]
    assert found.token_ids.tolist() == often.index.tolist()
    assert found.counts.tolist() == often.tolist()
    table = long.groupby(["token_id", "e"]).size().unstack(fill_value=0).reindex(columns=range(EXPERTS))
    expected = table.fillna(0).loc[often.index].div(often, axis=0)
    np.testing.assert_allclose(found.specialisation, expected.to_numpy())


def test_information(trace, long):
    found = mutual_information(trace, permutations=1)

    def entropy(columns: str) -> float:
        ((bits,),) = sql(
            f"""select -sum(n / t * log2(n / t)) from
            (select count(*) n, {33279 * K} t from a group by {columns})""",
            long,
        )
        return bits

    expected = entropy("e") + entropy("domain") - entropy("e, domain")
    assert found.domain[PLACE] == pytest.approx(expected)
    assert found.token[PLACE] == pytest.approx(entropy("e") + entropy("token_id") - entropy("e, token_id"))
    given = entropy("e, token_id") + entropy("domain, token_id") - entropy("token_id")
    given -= entropy("e, domain, token_id")
    assert found.domain_given_token[PLACE] == pytest.approx(given)
    assert found.expert_entropy[PLACE] == pytest.approx(entropy("e"))


@pytest.mark.parametrize("lag", [1, 16])
def test_repeats_and_lags(trace, long, lag):
    ((common, pairs),) = sql(
        f"""select (select count(*) from a l join a r on l.sequence = r.sequence and l.e = r.e
        and r.position = l.position + {lag}),
        (select count(*) from a l join a r on l.sequence = r.sequence and l.rank = 1 and r.rank = 1
        and r.position = l.position + {lag})""",
        long,
    )
    rate = common / pairs / K
    assert overlap_by_lag(trace, (lag,)).overlap[PLACE, 0] == pytest.approx(rate)
    if lag == 1:
        found = repeats(trace)
        assert found.repeat_rate.estimate[PLACE] == pytest.approx(rate)
        load = long.groupby("e").size() / len(long)
        assert found.chance[PLACE] == pytest.approx(K * (load**2).sum())
        ((document,),) = sql(
            """with c as (select document, e, count(*) n from a group by all),
            d as (select document, count(*) n from a where rank = 1 group by document),
            p as (select document, sum(c.n * (c.n - 1)) / any_value(d.n * (d.n - 1)) p
            from c join d using (document) group by document)
            select sum(p * (n - 1)) / sum(n - 1) from p join d using (document)""",
            long,
        )
        assert found.document_chance[PLACE] == pytest.approx(document / K)
        first = long[long["rank"] == 1].sort_values("row")
        same = (first["e"] == first["e"].shift()) & (first["sequence"] == first["sequence"].shift())
        assert found.first_repeat_rate[PLACE] == pytest.approx(same.sum() / pairs)


def test_runs(trace, long):
    """Islands of positions: position minus rank inside (sequence, expert)."""
    rows = sql(
        """select n, count(*) from (select count(*) n from (select sequence, e,
        position - row_number() over (partition by sequence, e order by position) island from a)
        group by sequence, e, island) group by n""",
        long,
    )
    found = run_lengths(trace, LAYER)
    assert {length: int(n) for length, n in enumerate(found) if n} == dict(rows)
    mean = sum(n * m for n, m in rows) / sum(m for _, m in rows)
    assert repeats(trace).mean_run[PLACE] == pytest.approx(mean)


def test_drift(trace, long):
    found = drift(trace, bins=4, rotations=1)
    bins = np.searchsorted(found.edges, long["position"], side="right") - 1
    table = pd.crosstab(long["e"], bins)
    inside, rest = table[3], table.drop(columns=3).sum(axis=1)
    p, q = inside / inside.sum(), rest / rest.sum()
    middle = (p + q) / 2
    parts = [(d[d > 0] * np.log2(d[d > 0] / middle[d > 0])).sum() for d in (p, q)]
    assert found.divergence[PLACE, 3] == pytest.approx(sum(parts) / 2)


def test_confidence(trace, long):
    found = confidence(trace)
    share = long["w"].astype(float) / long.groupby("row")["w"].transform(lambda w: w.astype(float).sum())
    # The slots of this recording are not sorted: ranks are those of the weights.
    place = share.groupby(long["row"]).rank(method="first", ascending=False)
    by_rank = share.groupby(place).mean()
    np.testing.assert_allclose(found.weight_by_rank[PLACE], by_rank.to_numpy(), rtol=1e-5)
    nats = (-share * np.log(share.where(share > 0, 1))).groupby(long["row"]).sum()
    assert found.effective_choices[PLACE] == pytest.approx(np.exp(nats).mean(), rel=1e-5)


def test_working_sets(trace, long):
    ((mean, number),) = sql(
        """with w as (select sequence, position + d as start, e from a, range(8) r(d)
        where position + d between 7 and (select max(position) from a s where s.sequence = a.sequence)),
        n as (select sequence, start, count(distinct e) n from w group by all)
        select avg(n), count(*) from n""",
        long,
    )
    found = working_sets(trace, (8,))
    assert found.number[0] == number
    assert found.mean[PLACE, 0] == pytest.approx(mean)


def test_overlap_and_saturation(trace, long):
    """Against the routing of the layer before, as if it were another pass."""
    other = RoutingTrace.from_blocks(
        trace.header,
        [TraceBlock(block.tokens, (block.layers[0], *block.layers[:-1])) for block in trace.blocks()],
    )
    left = {row: set(part) for row, part in long.groupby("row")["e"]}
    before = trace.ids(LAYER - 1).tolist()
    expected = np.mean([len(left[row] & set(chosen)) / K for row, chosen in enumerate(before)])
    assert overlap(trace, other).overlap.estimate[PLACE] == pytest.approx(expected)
    change = change_over_training([other, trace])
    assert change.saturation[0, PLACE] == pytest.approx(expected)
    assert change.churn[0, PLACE] == pytest.approx(1 - expected)


def test_experts(trace, long):
    found = expert_table(trace)
    rows = sql(
        f"""with s as (select row, sum(w) total, arg_max(rank, (w, -rank)) most from a group by row),
        n as (select l.e, count(*) uses, count(r.e) again from a l
        join (select distinct sequence, position - 1 as position from a) t using (sequence, position)
        left join a r on r.sequence = l.sequence and r.position = l.position + 1 and r.e = l.e group by l.e)
        select e, count(*), count(*) / ({33279 * K} / {EXPERTS}), avg((rank = most)::int), avg(w / total),
        any_value(again / uses) from a join s using (row) join n using (e) group by e order by e""",
        long,
    )
    experts, counts, load, first, weight, keeps = (
        np.array(column, float) for column in zip(*rows, strict=True)
    )
    assert experts.tolist() == list(range(EXPERTS))
    np.testing.assert_array_equal(found.assignments[PLACE], counts)
    np.testing.assert_allclose(found.load[PLACE], load)
    np.testing.assert_allclose(found.first[PLACE], first)
    np.testing.assert_allclose(found.weight[PLACE], weight, rtol=1e-5)
    np.testing.assert_allclose(found.keeps[PLACE], keeps)


def test_top_tokens(trace, long):
    found = top_tokens(trace, number=1, min_count=50)
    table = pd.crosstab(long["token_id"], long["e"]).reindex(columns=range(EXPERTS), fill_value=0)
    often = long.groupby("token_id")["row"].nunique()
    common = often[often >= 50]
    share = table.loc[common.index].div(common, axis=0)
    load = table.sum() / len(trace.tokens)
    spread = np.sqrt(np.outer((len(trace.tokens) / common - 1) / (len(trace.tokens) - 1), load * (1 - load)))
    z = (share - load) / spread
    np.testing.assert_array_equal(found.token_ids[PLACE, :, 0], z.idxmax().to_numpy())
    np.testing.assert_allclose(found.z[PLACE, :, 0], z.max().to_numpy())
    uses = table.loc[common.index]
    knowing = (uses**2).div(common, axis=0).sum() / uses.sum()
    np.testing.assert_allclose(found.knowing[PLACE], knowing.to_numpy())


def test_strongest_pairs(trace, long):
    """Counts and expectations with SQL, the bound by scipy."""
    table = coactivation(trace)
    found = neighbours(table)
    rows = sql(
        f"""with n as (select e, count(*) n from a group by e), t as (select sum(n) t from n)
        select l.e, r.e, count(*) pairs, any_value(
          {K - 1} * (x.n * y.n / (t - x.n) + x.n * y.n / (t - y.n)) / 2) expected
        from a l join a r using (row) join n x on x.e = l.e join n y on y.e = r.e, t
        where l.e < r.e group by all""",
        long,
    )
    spread = table.dispersion[PLACE]
    error = 0.05 / found.looked_at
    bounds = {
        (i, j): spread * stats.chi2.ppf(error, 2 * count / spread) / 2 / expected
        for i, j, count, expected in rows
    }
    edges = list(map(tuple, found.edges[PLACE].tolist()))
    best = sorted(bounds, key=lambda pair: -bounds[pair])
    assert edges[:5] == best[:5]
    np.testing.assert_allclose(found.bounds[PLACE][:5], [bounds[pair] for pair in best[:5]], rtol=0.02)
    of_pair = {(i, j): (count, expected) for i, j, count, expected in rows}
    assert found.counts[PLACE].tolist() == [of_pair[edge][0] for edge in edges]
    np.testing.assert_allclose(found.expected[PLACE], [of_pair[edge][1] for edge in edges])
