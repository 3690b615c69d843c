// Sound of any rate to 16 kHz, piece by piece: output n is the sound at n / 16000 s, whatever the
// sizes of the pieces. A sinc that is windowed (Kaiser), one set of weights for each place that an
// output can have between two inputs: one for 48 kHz, 160 for 44.1 kHz.
const TO_HZ = 16000;
const ZEROS = 24;       // of the sinc, on each side
const BETA = 8;         // of the window: 80 dB
const PASSED = 0.94;    // of the lower of the two bands

function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > 1e-12 * sum; k += 1) { term *= (x / (2 * k)) ** 2; sum += term; }
  return sum;
}

function divisor(a, b) { return b === 0 ? a : divisor(b, a % b); }

export class Resampler {
  constructor(fromHz) {
    const shared = divisor(fromHz, TO_HZ);
    this.up = TO_HZ / shared;
    this.down = fromHz / shared;
    const cut = PASSED * Math.min(1, TO_HZ / fromHz);
    this.half = Math.ceil(ZEROS / cut);
    this.weights = Array.from({ length: this.up }, (_, place) => this.weightsAt(place / this.up, cut));
    this.held = new Float32Array(this.half);  // silence before the first sample
    this.first = -this.half;                  // which input held[0] is
    this.next = 0;                            // which output is the next
  }

  // Of the inputs from 1 - half to half around an output that is `between` behind input 0.
  weightsAt(between, cut) {
    const weights = new Float64Array(2 * this.half);
    let sum = 0;
    for (let k = 0; k < weights.length; k += 1) {
      const x = k + 1 - this.half - between;
      const within = 1 - (x / this.half) ** 2;
      if (within <= 0) { continue; }
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * cut * x) / (Math.PI * cut * x);
      weights[k] = sinc * bessel(BETA * Math.sqrt(within)) / bessel(BETA);
      sum += weights[k];
    }
    return weights.map((weight) => weight / sum);
  }

  // Float32Array -> Float32Array: the outputs for which all that they need has come.
  take(samples) {
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const past = this.first + held.length;
    const outputs = [];
    for (;;) {
      const at = Math.floor(this.next * this.down / this.up);
      if (at + this.half >= past) { break; }
      const weights = this.weights[(this.next * this.down) % this.up];
      const from = at + 1 - this.half - this.first;
      let sum = 0;
      for (let k = 0; k < weights.length; k += 1) { sum += weights[k] * held[from + k]; }
      outputs.push(sum);
      this.next += 1;
    }
    const needed = Math.floor(this.next * this.down / this.up) + 1 - this.half;
    const forgotten = Math.max(needed - this.first, 0);
    this.held = held.slice(forgotten);
    this.first += forgotten;
    return Float32Array.from(outputs);
  }
}
