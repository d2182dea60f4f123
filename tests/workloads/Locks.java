import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;

/**
 * A Java monitor with a known number of contended enters: 23, one waiter at a time, and the time they took as
 * the waiter itself measured it. One enter may be several sleeps (the first in line parks with a time-out), so
 * the number of sleeps is at least this one. Threads hand turns to each other by polling: nothing else parks.
 */
public class Locks {
    static final int ENTERS = 23;
    static final Object cacheMonitor = new Object();

    static volatile int asked;
    static volatile int answered;
    static volatile long waitedNs;
    static long work;

    static void waitForCache() {
        long start = System.nanoTime();
        synchronized (cacheMonitor) {
            waitedNs += System.nanoTime() - start;
            work++;
        }
    }

    static void workerMain() {
        for (int round = 1; round <= ENTERS; round++) {
            while (asked < round) {
                pause();
            }
            waitForCache();
            answered = round;
        }
        while (true) {
            pause();
        }
    }

    static int refreshCache(Thread worker, int round) {
        int seen = 0;
        synchronized (cacheMonitor) {
            asked = round;
            while (worker.getState() != Thread.State.BLOCKED) {
                pause();
            }
            seen++;
            sleep(20);
        }
        while (answered < round) {
            pause();
        }
        return seen;
    }

    static void pause() {
        sleep(1);
    }

    static void sleep(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    static void expect(BufferedReader input, String word) throws IOException {
        String line = input.readLine();
        if (!word.equals(line)) {
            System.err.println("expected " + word + ", got " + line);
            System.exit(3);
        }
    }

    public static void main(String[] args) throws IOException {
        Thread worker = new Thread(Locks::workerMain, "worker");
        worker.setDaemon(true);
        worker.start();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready " + ProcessHandle.current().pid());
        expect(input, "go");
        int enters = 0;
        for (int round = 1; round <= ENTERS; round++) {
            enters += refreshCache(worker, round);
        }
        System.out.println("truth enters " + enters);
        System.out.println("truth waited_ns " + waitedNs);
        System.out.println("done");
        expect(input, "quit");
    }
}
