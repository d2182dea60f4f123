import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.ServerSocket;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Java: each usual way to wait, interpreted and compiled, after a round of contention.
 *
 * go: four threads enter one monitor 2,000 times each; done: every thread sleeps where it began.
 */
public class Zoo {
    static final Object held = new Object();
    static final Object hot = new Object();
    static final ReentrantLock lock = new ReentrantLock();
    static long work;

    interface Wait {
        void run() throws Exception;
    }

    static void waitMonitor() {
        synchronized (held) {
            work++;
        }
    }

    static void waitSorting() {
        List<Integer> list = new ArrayList<>(Arrays.asList(3, 1, 2));
        list.sort((a, b) -> {
            waitMonitor();
            return a - b;
        });
    }

    static int waitDeep(int depth) {
        if (depth == 0) {
            waitMonitor();
            return 0;
        }
        return waitDeep(depth - 1) + depth;
    }

    static void contend() {
        for (int i = 0; i < 2000; i++) {
            synchronized (hot) {
                work += Integer.toString(i).hashCode();
                if (i % 100 == 0) {
                    Thread.yield();
                }
            }
        }
    }

    static void thread(Wait wait) {
        Thread thread = new Thread(() -> {
            try {
                wait.run();
            } catch (Exception e) {
                throw new RuntimeException(e);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    public static void main(String[] args) throws Exception {
        CyclicBarrier start = new CyclicBarrier(5);
        CountDownLatch ended = new CountDownLatch(4);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        lock.lock();
        synchronized (held) {
            thread(Zoo::waitMonitor);
            thread(Zoo::waitSorting);
            thread(() -> waitDeep(100));
            thread(() -> lock.lock());
            thread(() -> Thread.sleep(600_000));
            thread(() -> LockSupport.park());
            thread(() -> new LinkedBlockingQueue<String>().take());
            thread(() -> new ServerSocket(0).accept());
            thread(() -> {
                synchronized (hot) {
                    hot.wait();
                }
            });
            for (int i = 0; i < 4; i++) {
                thread(() -> {
                    start.await();
                    contend();
                    ended.countDown();
                    waitMonitor();
                });
            }
            thread(() -> {
                Thread.sleep(600_000);
                Runtime.getRuntime().halt(3);
            });
            System.out.println("ready " + ProcessHandle.current().pid());
            expect(in, "go");
            start.await();
            ended.await();
            System.out.println("done");
            expect(in, "quit");
            Runtime.getRuntime().halt(0);
        }
    }

    static void expect(BufferedReader in, String word) throws IOException {
        if (!word.equals(in.readLine())) {
            Runtime.getRuntime().halt(0);
        }
    }
}
