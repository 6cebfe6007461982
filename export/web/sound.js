// A recording as log-mel energies: the arithmetic of the kit's sound.py, which describes it.

export const SAMPLE_RATE = 8000;
export const NUM_FRAMES = 64;
export const NUM_MELS = 40;
const [FRAME_LENGTH, FRAME_STEP, NUM_BINS, SPECTRUM] = [200, 80, 129, 256];

// The samples of an audio file at 8 kHz, in [-1, 1]; the browser knows its format and resamples it. Channels are averaged.
export async function readSound(file) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE);
  const audio = await context.decodeAudioData(await file.arrayBuffer());
  const channels = Array.from({ length: audio.numberOfChannels }, (_, place) => audio.getChannelData(place));
  const mean = (at) => channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length;
  // As a .wav file of 16 bits holds them.
  return Float64Array.from({ length: audio.length }, (_, at) => Math.round(32768 * mean(at)) / 32768);
}

// Float32Array of 64 frames of 40 energies, out of samples in [-1, 1].
export function logMel(samples) {
  const length = Math.max(samples.length, FRAME_LENGTH);
  const emphasised = Float64Array.from({ length }, (_, at) => (samples[at] ?? 0) - (at && at < samples.length ? 0.97 * samples[at - 1] : 0));
  const filters = melFilters();
  const frames = [];
  for (let start = 0; start + FRAME_LENGTH <= length; start += FRAME_STEP) {
    const power = spectrum(emphasised.subarray(start, start + FRAME_LENGTH));
    frames.push(filters.map((filter) => Math.log(filter.reduce((sum, weight, bin) => sum + weight * power[bin], 0) + 1e-8)));
  }
  const loudness = frames.map((frame) => Math.max(...frame));
  const limit = Math.max(...loudness) - 6;
  const isLoud = (value) => value > limit;
  const spoken = frames.slice(loudness.findIndex(isLoud), loudness.findLastIndex(isLoud) + 1);
  const energies = new Float32Array(NUM_FRAMES * NUM_MELS);
  for (let band = 0; band < NUM_MELS; band += 1) {
    const mean = spoken.reduce((sum, frame) => sum + frame[band], 0) / spoken.length;
    spoken.slice(0, NUM_FRAMES).forEach((frame, at) => (energies[at * NUM_MELS + band] = frame[band] - mean));
  }
  return energies;
}

// The power of a windowed frame in 129 bins.
function spectrum(frame) {
  const windowed = frame.map((sample, at) => sample * (0.54 - 0.46 * Math.cos((2 * Math.PI * at) / (FRAME_LENGTH - 1))));
  return Float64Array.from({ length: NUM_BINS }, (_, bin) => {
    let [real, imaginary] = [0, 0];
    windowed.forEach((sample, at) => {
      const angle = (2 * Math.PI * ((bin * at) % SPECTRUM)) / SPECTRUM;
      real += sample * Math.cos(angle);
      imaginary -= sample * Math.sin(angle);
    });
    return real * real + imaginary * imaginary;
  });
}

function melFilters() {
  const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
  const [lowest, highest] = [mel(60), mel(SAMPLE_RATE / 2)];
  const corner = (place) => 700 * (10 ** ((lowest + ((highest - lowest) * place) / (NUM_MELS + 1)) / 2595) - 1);
  return Array.from({ length: NUM_MELS }, (_, band) => {
    const [left, centre, right] = [corner(band), corner(band + 1), corner(band + 2)];
    return Float64Array.from({ length: NUM_BINS }, (_, bin) => {
      const hertz = (bin * SAMPLE_RATE) / 2 / (NUM_BINS - 1);
      return Math.max(0, Math.min((hertz - left) / (centre - left), (right - hertz) / (right - centre)));
    });
  });
}
