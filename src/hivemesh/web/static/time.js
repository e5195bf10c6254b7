// The last minutes: what was seen each second since the page was opened.

const MOST_FRAMES = 600;
const MOST_SCENES = 60; // different pictures: each may have a megabyte

export class Recorder {
  constructor() {
    this.frames = [];
  }

  add(scene, pulse) {
    this.frames.push({ scene, pulse });
    let dropped = 0;
    while (this.frames.length > MOST_FRAMES || new Set(this.frames.map((frame) => frame.scene)).size > MOST_SCENES) {
      this.frames.shift();
      dropped += 1;
    }
    return dropped;
  }
}
