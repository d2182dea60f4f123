# Ruby: threads that wait on a mutex, a queue, a socket and time, in blocks called back from C.
#
# go: four threads take one mutex 500 times each; done: every thread sleeps where it began.
require 'socket'

held = Mutex.new
hot = Mutex.new
held.lock
Thread.report_on_exception = false
waits = [
  -> { held.synchronize { 1 } },
  -> { [2, 1].sort { |a, b| held.synchronize { a <=> b } } },
  -> { 'axa'.gsub('x') { held.synchronize { 'y' } } },
  -> { Queue.new.pop },
  -> { sleep 600 },
  -> { TCPServer.new('127.0.0.1', 0).accept },
  -> { IO.pipe[0].read(1) }
]
waits.each { |wait| Thread.new(&wait) }
Thread.new { sleep 600; exit! 3 }
$stdout.sync = true
puts "ready #{Process.pid}"
exit! 0 unless $stdin.gets == "go\n"
count = 0
Array.new(4) { Thread.new { 500.times { hot.synchronize { count += 1; Thread.pass } } } }.each(&:join)
puts 'done'
$stdin.gets
exit! 0
