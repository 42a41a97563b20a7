// Columns of 64-bit numbers as `fivefold.report.page.packed` packs them: base64, deflate, byte planes, differences.
// A number is kept as two halves of 32 bits, since a number of this language has 53.

async function unpack(id, described) {
  const text = document.getElementById("block-" + id).textContent;
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const columns = {};
  described.names.forEach((name, index) => {
    const from = index * 8 * described.rows;
    columns[name] = new Column(bytes.subarray(from, from + 8 * described.rows), described.rows, described.restart);
  });
  return columns;
}

class Column {
  constructor(planes, rows, restart) {
    this.planes = planes;
    this.rows = rows;
    if (!restart) [this.low, this.high] = this.sums(0, rows);
  }

  // The halves of `count` numbers from `first` on, which begin anew there.
  sums(first, count) {
    const low = new Uint32Array(count), high = new Uint32Array(count), { planes, rows } = this;
    const half = (plane, at) => (planes[plane * rows + at] | planes[(plane + 1) * rows + at] << 8 |
      planes[(plane + 2) * rows + at] << 16 | planes[(plane + 3) * rows + at] << 24) >>> 0;
    let lowSum = 0, highSum = 0;
    for (let i = 0; i < count; i++) {
      const step = half(0, first + i);
      lowSum = (lowSum + step) >>> 0;
      highSum = (highSum + half(4, first + i) + (lowSum < step ? 1 : 0)) >>> 0;
      low[i] = lowSum;
      high[i] = highSum;
    }
    return [low, high];
  }

  at(index) { return this.high[index] * 0x100000000 + this.low[index]; }
  big(index) { return BigInt(this.high[index]) << 32n | BigInt(this.low[index]); }
}

const hex = (value) => "0x" + value.toString(16).padStart(16, "0");
const hexPage = (page, offset = 0) => "0x" + page.toString(16).padStart(13, "0") + offset.toString(16).padStart(3, "0");

// Sizes as `fivefold.units.format_size` writes them: the largest unit that divides, from pages.
function sizeOfPages(pages) {
  let amount = BigInt(pages) * 4n;
  for (const unit of ["K", "M", "G", "T", "P", "E"]) {
    if (amount % 1024n || amount < 1024n) return amount + unit;
    amount /= 1024n;
  }
}
