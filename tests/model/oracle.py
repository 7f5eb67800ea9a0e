"""RETRO as plain loops in float64, from the paper's algorithm 1, equations 3, 6 and 7 and appendix
B.1.2: slow, and written from nothing but them. The tests hold the network to it."""

import numpy as np

from retro_jax.model.retro import layer_names

PAD = 0


def positions(distance: int, width: int) -> np.ndarray:
    angles = distance * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def attend_one(query, others, distance_of, a) -> np.ndarray:
    """One query vector to the vectors `others`, [(index, vector)], under one softmax; -> [D].

    distance_of(index) is the query's position minus the key's. a: the attention's weights by name.
    """
    out = np.zeros(a["out"].shape[-1])
    if not others:
        return out
    for n, b in np.ndindex(a["query"].shape[1:3]):
        q = query @ a["query"][:, n, b]
        logits = np.array(
            [
                (q + a["content_bias"][n, b]) @ (x @ a["key"][:, n])
                + (q + a["position_bias"][n, b])
                @ (positions(distance_of(i), len(query)) @ a["position"][:, n, b])
                for i, x in others
            ]
        ) / np.sqrt(len(q))
        weights = np.exp(logits - logits.max())
        total = weights.sum()
        if "null_key" in a:  # ours, not the paper's: one more key, whose value is 0
            total += np.exp(q @ a["null_key"][n, b] + a["null_bias"][n, b] - logits.max())
        weights /= total
        read = sum(w * (x @ a["value"][:, n]) for w, (_, x) in zip(weights, others))
        out += read @ a["out"][n, b]
    return out


def rms(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def feed_forward(x, w):
    x = x @ w["up"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ w["down"]


def unstacked(config, params) -> dict[str, np.ndarray]:
    """The network's weights as `logits` takes them: {"layer.1.attention.query": ..., "embedding": ...}."""
    values = {n: np.asarray(p, np.float64) for n, p in params.items()}
    out = {n: w for n, w in values.items() if not n.startswith("stacks.")}
    for number, (prefix, index) in enumerate(layer_names(config), 1):
        for name, stack in part(values, prefix).items():
            out[f"layer.{number}.{name}"] = stack[index]
    return out


def part(weights: dict, prefix: str) -> dict:
    """The weights below a prefix, by the rest of their names."""
    return {n[len(prefix) + 1 :]: w for n, w in weights.items() if n.startswith(prefix + ".")}


def encode(weights, c, neighbour, chunk) -> dict[int, np.ndarray]:
    """One neighbour, [R] ids, given its chunk's activations [(place, vector)] -> {place: vector}."""
    table = weights["embedding" if c.encoder.share_embedding else "encoder.embedding"]
    e = {j: table[t] * np.sqrt(c.encoder.d) for j, t in enumerate(neighbour) if t != PAD}
    for number in range(c.encoder.layers):
        layer = part(weights, f"encoder.layers.{number}")
        x = {j: rms(v, layer["attention_norm.scale"]) for j, v in e.items()}
        a = part(layer, "attention")
        e = {j: e[j] + attend_one(x[j], list(x.items()), lambda i, j=j: j - i, a) for j in e}
        if number + 1 in c.encoder.cross_layers:
            a, scale = part(layer, "cross.attention"), layer["cross.norm.scale"]
            e = {
                j: v + attend_one(rms(v, scale), chunk, lambda i, j=j: j - i, a)
                for j, v in e.items()
            }
        w = part(layer, "feed_forward")
        e = {j: v + feed_forward(rms(v, layer["norm.scale"]), w) for j, v in e.items()}
    return {j: rms(v, weights["encoder.norm.scale"]) for j, v in e.items()}


def logits(weights: dict, c, tokens, neighbours, points=None) -> np.ndarray:
    """Logits [L, V] of one sequence [L] with neighbours [C, K, R] (or None).

    weights: by name, "layer.1.attention.query" for decoder layer 1, unstacked, float64.
    points: before which places the chunks end that retrieved, the last M tokens each; by default, as in
      the paper, every M tokens.
    """
    m, table, length = c.reading.chunk, weights["embedding"], len(tokens)
    h = table[tokens] * np.sqrt(c.decoder.d)
    memories = None
    if points is None and neighbours is not None:
        points = [(u + 1) * m for u in range(len(neighbours))]
    for number in range(1, c.decoder.layers + 1):
        layer = part(weights, f"layer.{number}")
        x, a = rms(h, layer["attention_norm.scale"]), part(layer, "attention")
        h = h + np.stack(
            [
                attend_one(
                    x[t],
                    [(s, x[s]) for s in range(t + 1) if tokens[s] != PAD],
                    lambda s, t=t: t - s,
                    a,
                )
                for t in range(length)
            ]
        )
        if number == min(c.reading.cca_layers) and neighbours is not None:
            memories = []
            for end, each in zip(points, neighbours):
                rows = range(max(0, end - m), min(end, length))
                chunk = [(t - end + m, h[t]) for t in rows if tokens[t] != PAD]
                memories.append([encode(weights, c, n, chunk) for n in each])
        if number in c.reading.cca_layers and neighbours is not None:
            a, scale = part(layer, "cca.attention"), layer["cca.norm.scale"]
            added = np.zeros_like(h)
            for t in range(length):
                u = sum(end <= t + 1 for end in points) - 1  # the last chunk that is complete at t
                if u >= 0:
                    keys = [(j, v) for memory in memories[u] for j, v in memory.items()]
                    begin = points[u] - m

                    def distance(j, t=t, begin=begin):
                        return t - begin - j

                    added[t] = attend_one(rms(h[t], scale), keys, distance, a)
            h = h + added
        h = h + feed_forward(rms(h, layer["norm.scale"]), part(layer, "feed_forward"))
    return rms(h, weights["norm.scale"]) @ table.T
