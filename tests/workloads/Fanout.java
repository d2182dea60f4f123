import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.concurrent.ArrayBlockingQueue;

/** Story 4 in Java, as fanout.c: an ArrayBlockingQueue with room for one; `fixed`: room for all. */
public class Fanout {
    static final int REQUESTS = 80;
    static final int WORKERS = 3;

    static void sendResult(ArrayBlockingQueue<Integer> to) {
        try {
            to.put(3);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    static void serveRequest(int room) throws InterruptedException {
        ArrayBlockingQueue<Integer> answers = new ArrayBlockingQueue<>(room);
        for (int at = 0; at < WORKERS; at++) {
            Thread thread = new Thread(() -> sendResult(answers));
            thread.setDaemon(true);
            thread.start();
        }
        answers.take();
    }

    public static void main(String[] args) throws IOException, InterruptedException {
        boolean fixed = args.length > 0 && args[0].equals("fixed");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready " + ProcessHandle.current().pid());
        in.readLine();
        for (int at = 0; at < REQUESTS; at++) {
            serveRequest(fixed ? WORKERS : 1);
            Thread.sleep(120);
        }
        System.out.println("truth kept " + (fixed ? 0 : REQUESTS));
        System.out.println("done");
        in.readLine();
        System.exit(0);
    }
}
