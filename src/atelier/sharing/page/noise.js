"use strict";

// The numbers of torch's generator on a CPU, for the same drawings as those of `atelier sample`: Mersenne twister
// (Matsumoto and Nishimura, 1998), and pairs of Box and Muller as torch fills a tensor with them.
const CHUNK = 100; // rows of noise that are drawn at once, in sampler.py too
const WORDS = 624, MIDDLE = 397;

class Generator {
  constructor(seed) {
    this.state = new Uint32Array(WORDS);
    this.state[0] = Number(BigInt(seed) & 0xffffffffn);
    for (let i = 1; i < WORDS; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.next = WORDS;
  }

  uniform() { // in [0, 1), of 24 bits
    if (this.next === WORDS) this.twist();
    let word = this.state[this.next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    word ^= word >>> 18;
    return (word & 0xffffff) / 0x1000000;
  }

  twist() {
    const { state } = this;
    for (let i = 0; i < WORDS; i++) {
      const mixed = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % WORDS] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  normal(count) { // torch.randn of 16 numbers or more
    const values = Float32Array.from({ length: count }, () => this.uniform());
    for (let start = 0; start + 16 <= count; start += 16) pairs(values, start);
    if (count % 16) { // the last sixteen are drawn anew
      for (let i = count - 16; i < count; i++) values[i] = this.uniform();
      pairs(values, count - 16);
    }
    return values;
  }

  truncated(count, bound) { // torch.nn.init.trunc_normal_ between -bound and bound, where more than 0.3 lies between
    const limit = Math.fround(bound), values = this.normal(count);
    const isOut = value => value < -limit || value > limit;
    while (values.some(isOut)) {
      const fresh = this.normal(count);
      values.forEach((value, i) => { if (isOut(value)) values[i] = fresh[i]; });
    }
    return values;
  }
}

function pairs(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i])), angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

// Rows `first` to `first + count` of the noise of a seed, each of `size` numbers, as `atelier sample` draws them.
function seedNoise(seed, first, count, size, truncation = null) {
  const generator = new Generator(seed), rows = new Float32Array(count * size);
  for (let start = 0; start < first + count; start += CHUNK) {
    let chunk = generator.normal(CHUNK * size);
    if (truncation !== null) chunk = generator.truncated(CHUNK * size, truncation);
    const from = Math.max(first, start), to = Math.min(first + count, start + CHUNK);
    if (from < to) rows.set(chunk.subarray((from - start) * size, (to - start) * size), (from - first) * size);
  }
  return rows;
}
