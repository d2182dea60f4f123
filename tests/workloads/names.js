// names: one worker that waits 23 times for a word, in functions whose names and order are known.
'use strict';
const { Worker, isMainThread, workerData } = require('worker_threads');
const rounds = 23;

function waitForCache(words, round) {
  Atomics.store(words, 1, round);
  while (Atomics.load(words, 0) !== round) {
    Atomics.wait(words, 0, round - 1);
  }
}

function handleRequest(words, round) {
  waitForCache(words, round);
  return round;
}

function workerMain(words) {
  let served = 0;
  for (let round = 1; round <= rounds; round++) {
    served = handleRequest(words, round);
  }
  return served;
}

if (!isMainThread) {
  workerMain(workerData);
} else {
  const words = new Int32Array(new SharedArrayBuffer(8));
  const lines = require('readline').createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    if (line === 'quit') process.exit(0);
    if (line !== 'go') return;
    const worker = new Worker(__filename, { workerData: words });
    let round = 1, asleep = 0;
    const timer = setInterval(() => {
      // Some time after it said that it would wait.
      if (Atomics.load(words, 1) !== round || ++asleep < 3) return;
      asleep = 0;
      Atomics.store(words, 0, round);
      Atomics.notify(words, 0, 1);
      round++;
    }, 2);
    worker.on('exit', () => {
      clearInterval(timer);
      console.log(`truth rounds ${rounds}`);
      console.log('done');
    });
  });
  console.log(`ready ${process.pid}`);
}
