// A ViT in plain JavaScript: files (hra.viz.packed), changes of its weights, the forward pass, digits.
// Numbers are float32, sums are in double. W is (d_out, d_in), by rows.
const vit = (() => {
// ---- files: safetensors with int8 rows and their scales, fp16 vectors
function half(h) {
  const e = (h >> 10) & 31, m = h & 1023, s = h >> 15 ? -1 : 1;
  return s * (e === 31 ? (m ? NaN : Infinity) : e ? 2 ** (e - 25) * (1024 + m) : 2 ** -24 * m);
}

function decode(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function unpack(bytes) {
  const n = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const { __metadata__: about, ...head } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + n)));
  const kinds = { I8: Int8Array, U8: Uint8Array, F16: Uint16Array, F32: Float32Array };
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(head)) {
    const data = new kinds[dtype](bytes.slice(8 + n + from, 8 + n + to).buffer);
    tensors[name] = { shape, data: dtype === "F16" ? Float32Array.from(data, half) : data };
  }
  return { ...JSON.parse(about.hra), tensors };
}

function dense(tensors, name) {
  const { shape, data } = tensors[name], scale = tensors[`${name}.scale`]?.data;
  if (!scale) return { shape, data };
  const out = new Float32Array(data.length), width = data.length / scale.length;
  for (let i = 0; i < out.length; i++) out[i] = scale[(i / width) | 0] * data[i];
  return { shape, data: out };
}

function positions(gaps, count) {  // 255: "255 more, and go on"
  const out = new Int32Array(count);
  let at = -1, k = 0;
  for (const g of gaps) if (g === 255) at += 255; else out[k++] = at += g + 1;
  return out;
}

function readModel(bytes) {
  const { tensors, ...config } = unpack(bytes), W = {};
  for (const name in tensors) if (!name.endsWith(".scale")) W[name] = dense(tensors, name);
  return { config, W };
}

function readChange(bytes) {
  const { tensors, sites } = unpack(bytes);
  return sites.map((site) => {
    if (tensors[`${site}.factors`]) {
      const { shape: [r, width], data } = dense(tensors, `${site}.factors`);
      return { site, r, width, factors: data };
    }
    const q = tensors[`${site}.values`].data, at = positions(tensors[`${site}.gaps`].data, q.length);
    const order = Int32Array.from(q.keys()).sort((i, j) => Math.abs(q[j]) - Math.abs(q[i]) || i - j);
    return { site, at, order, values: dense(tensors, `${site}.values`).data };
  });
}

function readImages(bytes) {
  const { tensors, side, images } = unpack(bytes), size = side * side, v = tensors.values.data;
  const all = new Float32Array(images * size);
  positions(tensors.gaps.data, v.length).forEach((p, k) => { all[p] = v[k] / 255; });
  return Array.from(tensors.labels.data, (label, i) => ({ label, image: all.subarray(i * size, (i + 1) * size) }));
}

// ---- the weights W0 + Σ α ΔW, each ΔW cut to `keep` eighths: of its ranks, the first; of its entries, the largest
const share = (n, keep) => Math.round(n * Math.min(8, Math.max(0, keep)) / 8);
const numbers = (change, keep = 8) =>
  change.reduce((all, { r, width, order }) => all + (order ? share(order.length, keep) : share(r, keep) * width), 0);

function adapted(model, changes) {
  const W = { ...model.W };
  for (const { change, alpha, keep = 8 } of changes) {
    for (const { site, r, width, factors, at, order, values } of change) {
      const name = `${site}.weight`, old = W[name], data = old === model.W[name] ? old.data.slice() : old.data;
      W[name] = { shape: old.shape, data };
      const [rows, cols] = old.shape;
      for (let k = 0; k < share(r ?? 0, keep); k++)
        for (let o = 0; o < rows; o++) {
          const c = alpha * factors[k * width + o], row = o * cols, from = k * width + rows;
          for (let i = 0; i < cols; i++) data[row + i] += c * factors[from + i];
        }
      const most = share(order?.length ?? 0, keep);
      for (let k = 0; k < most; k++) data[at[order[k]]] += alpha * values[order[k]];
    }
  }
  return W;
}

// ---- the forward pass
function linear(x, T, W, b) {  // (T, d_in) → (T, d_out), four tokens at a time
  const [rows, cols] = W.shape, w = W.data, y = new Float32Array(T * rows), last = T - T % 4;
  for (let o = 0; o < rows; o++) {
    const row = o * cols, bias = b ? b.data[o] : 0;
    for (let t = 0; t < last; t += 4) {
      const p = t * cols, q = p + cols, r = q + cols, s = r + cols;
      let e = 0, f = 0, g = 0, h = 0;
      for (let i = 0; i < cols; i++) {
        const c = w[row + i];
        e += c * x[p + i]; f += c * x[q + i]; g += c * x[r + i]; h += c * x[s + i];
      }
      const at = t * rows + o;
      y[at] = e + bias; y[at + rows] = f + bias; y[at + 2 * rows] = g + bias; y[at + 3 * rows] = h + bias;
    }
    for (let t = last; t < T; t++) {
      let e = 0;
      for (let i = 0; i < cols; i++) e += w[row + i] * x[t * cols + i];
      y[t * rows + o] = e + bias;
    }
  }
  return y;
}

function norm(x, T, g, b, eps) {
  const d = g.data.length, y = new Float32Array(x.length);
  for (let p = 0; p < T * d; p += d) {
    let mean = 0, v = 0;
    for (let i = 0; i < d; i++) mean += x[p + i] / d;
    for (let i = 0; i < d; i++) v += (x[p + i] - mean) ** 2 / d;
    const s = 1 / Math.sqrt(v + eps);
    for (let i = 0; i < d; i++) y[p + i] = (x[p + i] - mean) * s * g.data[i] + b.data[i];
  }
  return y;
}

function gelu(x) {  // with erf to 1.5e-7: Abramowitz and Stegun, 7.1.26
  for (let i = 0; i < x.length; i++) {
    const z = Math.abs(x[i]) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
    const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * Math.exp(-z * z);
    x[i] *= x[i] < 0 ? tail / 2 : 1 - tail / 2;
  }
  return x;
}

function softmax(x) {
  const top = Math.max(...x), e = Array.from(x, (v) => Math.exp(v - top)), all = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / all);
}

function attention(q, k, v, T, heads) {
  const d = q.length / T, n = d / heads, out = new Float32Array(q.length);
  for (let h = 0; h < d; h += n)
    for (let t = 0; t < T; t++) {
      const scores = new Array(T);
      for (let u = 0; u < T; u++) {
        let s = 0;
        for (let i = 0; i < n; i++) s += q[t * d + h + i] * k[u * d + h + i];
        scores[u] = s / Math.sqrt(n);
      }
      softmax(scores).forEach((p, u) => { for (let i = 0; i < n; i++) out[t * d + h + i] += p * v[u * d + h + i]; });
    }
  return out;
}

const add = (x, y) => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };

function forward({ side, patch, layers, heads, eps, mean, std }, W, image) {  // image: ink from 0 to 1 → logits
  const n = side / patch, T = n * n + 1, E = "vit.embeddings.";
  const pixels = new Float32Array(side * side);
  for (let i = 0; i < pixels.length; i++) {
    const row = (i / side) | 0, col = i % side;
    const at = ((row / patch) | 0) * n + ((col / patch) | 0);
    pixels[at * patch * patch + (row % patch) * patch + (col % patch)] = (image[i] - mean) / std;
  }
  const cls = W[`${E}cls_token`].data, x = new Float32Array(T * cls.length);
  x.set(cls);
  x.set(linear(pixels, T - 1, W[`${E}patch_embeddings.projection.weight`], W[`${E}patch_embeddings.projection.bias`]), cls.length);
  add(x, W[`${E}position_embeddings`].data);
  for (let l = 0; l < layers; l++) {
    const at = (name) => W[`vit.layers.${l}.${name}`];
    const lin = (y, name) => linear(y, T, at(`${name}.weight`), at(`${name}.bias`));
    let y = norm(x, T, at("layernorm_before.weight"), at("layernorm_before.bias"), eps);
    y = attention(lin(y, "attention.q_proj"), lin(y, "attention.k_proj"), lin(y, "attention.v_proj"), T, heads);
    add(x, lin(y, "attention.o_proj"));
    y = norm(x, T, at("layernorm_after.weight"), at("layernorm_after.bias"), eps);
    add(x, lin(gelu(lin(y, "mlp.fc1")), "mlp.fc2"));
  }
  const y = norm(x.subarray(0, cls.length), 1, W["vit.layernorm.weight"], W["vit.layernorm.bias"], eps);
  return linear(y, 1, W["classifier.weight"], W["classifier.bias"]);
}

// ---- digits
const SIDE = 28;

function rotate(image, degrees) {  // counter-clockwise, bilinear, as hra.data.digits.rotate
  const out = new Float32Array(image.length), n = SIDE, c = Math.cos(degrees * Math.PI / 180), s = Math.sin(degrees * Math.PI / 180);
  const ink = (i, j) => (i < 0 || j < 0 || i >= n || j >= n ? 0 : image[i * n + j]);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < n; j++) {
      const y = i - (n - 1) / 2, x = j - (n - 1) / 2, u = c * x - s * y + (n - 1) / 2, v = s * x + c * y + (n - 1) / 2;
      const a = Math.floor(v), b = Math.floor(u), p = v - a, q = u - b;
      out[i * n + j] = (1 - p) * ((1 - q) * ink(a, b) + q * ink(a, b + 1)) + p * ((1 - q) * ink(a + 1, b) + q * ink(a + 1, b + 1));
    }
  return out;
}

const shift = (kind, image, degrees) => (kind === "rotated" ? rotate(image, degrees) : kind === "inverted" ? image.map((v) => 1 - v) : image);

// Strokes [[[x, y], …], …] as MNIST has its digits: the longer side 20 pixels, edges grey, the centre of mass between 14 and 15
// pixels from the top and from the left (so they measure). The pen is as wide on a small drawing as on a large one.
const PEN = 1.35, EDGE = 1.2;  // half the width of full ink, and of the fade, in pixels
function raster(strokes) {
  const points = strokes.flat(), out = new Float32Array(SIDE * SIDE);
  if (!points.length) return out;
  const low = [0, 1].map((a) => Math.min(...points.map((p) => p[a]))), high = [0, 1].map((a) => Math.max(...points.map((p) => p[a])));
  const long = Math.max(high[0] - low[0], high[1] - low[1]);
  const scale = long ? (20 - 2 * PEN - EDGE / 2) / long : 0;
  let shift = [0, 1].map((a) => SIDE / 2 - scale * (low[a] + high[a]) / 2);
  for (let pass = 0; pass < 2; pass++) {
    const lines = strokes.map((s) => s.map((p) => [scale * p[0] + shift[0], scale * p[1] + shift[1]]));
    let mass = 0, mx = 0, my = 0;
    for (let i = 0; i < SIDE; i++)
      for (let j = 0; j < SIDE; j++) {
        let d = Infinity;
        for (const s of lines) for (let k = 0; k < s.length; k++) d = Math.min(d, distance(j + 0.5, i + 0.5, s[Math.max(0, k - 1)], s[k]));
        const ink = Math.min(1, Math.max(0, (PEN + EDGE / 2 - d) / EDGE));
        out[i * SIDE + j] = ink;
        mass += ink; mx += ink * (j + 0.5); my += ink * (i + 0.5);
      }
    if (mass) shift = [shift[0] + 14.5 - mx / mass, shift[1] + 14.5 - my / mass];
  }
  return out;
}

function distance(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  const t = length ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return Math.hypot(x - ax - t * dx, y - ay - t * dy);
}

return { decode, readModel, readChange, readImages, share, numbers, adapted, forward, softmax, shift, raster, SIDE };
})();
