// Masks as they come from the server, COCO's compressed run lengths, and how they are painted.

export const COLOURS = [
  [30, 144, 255], [255, 138, 0], [34, 181, 115], [214, 51, 132], [130, 87, 229], [0, 172, 193],
  [230, 57, 70], [120, 160, 30], [240, 180, 0], [90, 110, 255], [160, 100, 60], [255, 99, 146],
];

// The lengths of the runs of 0, 1, 0, ... down the columns: numbers in base 32, from the third on as differences.
export function decodeCounts(text) {
  const counts = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const digit = text.charCodeAt(place++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
      more = (digit & 32) !== 0;
      if (!more && (digit & 16)) value |= -1 << shift;
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

// One byte per pixel, row by row.
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let place = 0, inside = false;
  for (const count of decodeCounts(counts)) {
    if (inside) {
      for (let i = place; i < place + count; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    }
    place += count;
    inside = !inside;
  }
  return mask;
}

// Tint a mask into pixels of RGBA, and draw its outline `thick` pixels wide.
export function paint(pixels, mask, width, height, [r, g, b], fill, thick) {
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const edge = x < thick || y < thick || x >= width - thick || y >= height - thick || !mask[i - thick]
        || !mask[i + thick] || !mask[i - thick * width] || !mask[i + thick * width];
      pixels[4 * i] = r;
      pixels[4 * i + 1] = g;
      pixels[4 * i + 2] = b;
      pixels[4 * i + 3] = edge ? 255 : fill;
    }
  }
}
