// In the browser's thread for sound: what the microphone gives, to messages of 100 ms as the service
// takes them: a byte 1, then signed 16 bits, little-endian, mono, 16 kHz.
import { Resampler } from "./resample.js";

const SAMPLES = 1600;

class LiveSound extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate);
    this.start();
    this.isOver = false;
    this.port.onmessage = () => { this.send(); this.isOver = true; this.port.postMessage(null); };
  }

  start() {
    this.message = new DataView(new ArrayBuffer(1 + 2 * SAMPLES));
    this.message.setUint8(0, 1);
    this.count = 0;
    this.loudest = 0;
  }

  process(inputs) {
    if (this.isOver) { return false; }
    const channels = inputs[0];
    if (channels.length === 0) { return true; }
    const mono = Float32Array.from(channels[0]);
    for (const other of channels.slice(1)) { other.forEach((value, k) => { mono[k] += value; }); }
    for (const value of this.resampler.take(mono)) { this.add(value / channels.length); }
    return true;
  }

  add(value) {
    this.loudest = Math.max(this.loudest, Math.abs(value));
    const whole = Math.round(Math.min(Math.max(value, -1), 32767 / 32768) * 32768);
    this.message.setInt16(1 + 2 * this.count, whole, true);
    this.count += 1;
    if (this.count === SAMPLES) { this.send(); }
  }

  send() {
    if (this.count > 0) {
      const content = this.message.buffer.slice(0, 1 + 2 * this.count);
      this.port.postMessage({ content, loudest: this.loudest, samples: this.count }, [content]);
    }
    this.start();
  }
}

registerProcessor("live-sound", LiveSound);
