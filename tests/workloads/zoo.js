// Node: workers that wait in Atomics.wait and in a lock of the engine, beside an event loop that slept and served.
//
// go: files are read by the pool, keys derived, messages exchanged; done: everything sleeps.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto');
const fs = require('fs');
const readline = require('readline');

if (!isMainThread) {
  const word = new Int32Array(workerData);
  parentPort.on('message', (text) => {
    if (text === 'sleep') {
      [1].map(() => Atomics.wait(word, 0, 0));
    } else {
      parentPort.postMessage(text);
    }
  });
} else {
  const shared = new SharedArrayBuffer(4);
  const workers = [1, 2, 3].map(() => new Worker(__filename, { workerData: shared }));
  setTimeout(() => process.exit(3), 600_000);
  const online = workers.map((worker) => new Promise((resolve) => worker.once('online', resolve)));
  Promise.all(online).then(() => console.log(`ready ${process.pid}`));

  async function serve() {
    for (let round = 0; round < 200; round++) {
      await Promise.all(workers.map((worker) => new Promise((resolve) => {
        worker.once('message', resolve);
        worker.postMessage(round);
      })));
      await fs.promises.readFile(__filename);
    }
    await new Promise((resolve) => crypto.pbkdf2('a', 'b', 20000, 64, 'sha512', resolve));
    workers.forEach((worker) => worker.postMessage('sleep'));
    console.log('done');
  }

  readline.createInterface({ input: process.stdin }).on('line', (line) => {
    if (line === 'go') serve();
    if (line === 'quit') process.exit(0);
  });
}
