// Runs a transformer encoder in int8 on processors with AVX-512 VNNI: a program of few instructions on rows of floats.
//
// A row is a token of a text, or a text. Rows keep no padding: texts lie one after the other. Between two attentions
// all instructions are row by row, so a thread takes a few rows through all of them while they lie in its cache, and
// threads wait for each other once in an iteration. Each value of a row is computed by the same operations in the same
// order, whatever rows are beside it: an answer does not depend on a text's company.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "model.hpp"

#ifdef _WIN32
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr int UNIT = 64;     // rows of short texts that are taken together
constexpr int SPINS = 2000;  // looks for work before a thread sleeps

// A job is a row of phases, each cut into parts. Threads take parts as they come, and wait for a phase's last one.
class Job {
 public:
  Job(std::vector<int> parts, std::function<void(size_t, int, Scratch&)> run)
      : parts_(std::move(parts)),
        taken_(new std::atomic<int>[parts_.size()]()),
        done_(new std::atomic<int>[parts_.size()]()),
        run_(std::move(run)) {}

  void work(Scratch& scratch) {
    for (size_t phase = 0; phase < parts_.size(); phase++) {
      if (phase) wait_for(phase - 1);
      for (int part; (part = taken_[phase].fetch_add(1, std::memory_order_relaxed)) < parts_[phase];) {
        try {
          run_(phase, part, scratch);
        } catch (const std::bad_alloc&) {
          failed_.store(true);
        }
        done_[phase].fetch_add(1, std::memory_order_release);
      }
    }
  }

  void finish() {
    wait_for(parts_.size() - 1);
    if (failed_.load()) throw std::bad_alloc();
  }

 private:
  void wait_for(size_t phase) const {
    for (int spins = 0; done_[phase].load(std::memory_order_acquire) < parts_[phase]; spins++) {
      if (spins < SPINS)
        _mm_pause();
      else
        std::this_thread::yield();
    }
  }

  const std::vector<int> parts_;
  const std::unique_ptr<std::atomic<int>[]> taken_, done_;
  const std::function<void(size_t, int, Scratch&)> run_;
  std::atomic<bool> failed_{false};
};

class Pool {
 public:
  // Where the system gives fewer threads, with those.
  explicit Pool(int threads) {
    try {
      for (int i = 1; i < threads; i++) workers_.emplace_back([this] { serve(); });
    } catch (const std::exception&) {
    }
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      generation_.fetch_add(1);
    }
    woken_.notify_all();
    for (std::thread& one : workers_) one.join();
  }

  // Whoever gives a job works on it too, so a thread that the system does not run holds nobody up before it takes a
  // part.
  void run(const std::shared_ptr<Job>& job, Scratch& scratch) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      generation_.fetch_add(1, std::memory_order_release);
    }
    woken_.notify_all();
    job->work(scratch);
    std::lock_guard<std::mutex> lock(mutex_);
    job_.reset();
  }

 private:
  void serve() {
    Scratch scratch;
    uint64_t seen = 0;
    while (true) {
      for (int spins = 0; spins < SPINS && generation_.load(std::memory_order_acquire) == seen; spins++) _mm_pause();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [&] { return stopped_ || generation_.load() != seen; });
        if (stopped_) return;
        seen = generation_.load();
        job = job_;
      }
      if (job) job->work(scratch);
    }
  }

  std::mutex mutex_;
  std::condition_variable woken_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> generation_{0};
  bool stopped_ = false;
  std::vector<std::thread> workers_;
};

struct Batch {
  int count;
  const int32_t* lengths;
  int64_t stride;
  const int64_t *ids, *types;
  float* out;
  int out_rows;
};

class Session {
 public:
  Session(std::unique_ptr<Model> model, int threads) : model_(std::move(model)), threads_(threads) {}

  // Return whether every text has tokens, and the model a row for each of them.
  bool run(const Batch& batch) {
    for (int i = 0; i < batch.count; i++) {
      const int length = batch.lengths[i];
      const int64_t start = i * batch.stride;
      if (length < 1 || length > batch.stride) return false;
      if (!model_->knows(length, batch.ids + start, batch.types ? batch.types + start : nullptr)) return false;
    }
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);  // whoever comes second works alone
    const int threads = lock.owns_lock() ? threads_ : 1;
    const std::vector<std::vector<int>> units = divide(batch, threads);
    static thread_local Scratch scratch;
    if (threads == 1) {
      for (const auto& unit : units) run_unit(batch, unit, scratch);
      return true;
    }
    if (!pool_) pool_.reset(new Pool(threads_));
    if (units.size() > 1) {
      share({int(units.size())}, [&](size_t, int part, Scratch& own) { run_unit(batch, units[part], own); }, scratch);
      return true;
    }
    const Texts texts = read(batch, units[0]);
    Space space = take_space();
    model_->make_room(texts, space);
    std::vector<int> parts;
    for (size_t phase = 0; phase < model_->phases(); phase++) parts.push_back(model_->parts(phase, texts, threads));
    share(
        parts, [&](size_t phase, int part, Scratch& own) { model_->run(phase, part, parts[phase], texts, space, own); },
        scratch);
    write(batch, units[0], texts, space);
    give_space(std::move(space));
    return true;
  }

 private:
  // Long texts come first, and short ones are taken together; one unit if there are fewer than threads.
  std::vector<std::vector<int>> divide(const Batch& batch, int threads) const {
    std::vector<int> order(batch.count);
    int64_t total = 0;
    for (int i = 0; i < batch.count; i++) {
      order[i] = i;
      total += batch.lengths[i];
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return batch.lengths[a] > batch.lengths[b]; });
    const int most = int(std::max<int64_t>(1, std::min<int64_t>(UNIT, total / threads)));
    std::vector<std::vector<int>> units;
    int rows = 0;
    for (int text : order) {
      if (units.empty() || rows + batch.lengths[text] > most) {
        units.emplace_back();
        rows = 0;
      }
      units.back().push_back(text);
      rows += batch.lengths[text];
    }
    return int(units.size()) < threads ? std::vector<std::vector<int>>{order} : units;
  }

  Texts read(const Batch& batch, const std::vector<int>& unit) const {
    Texts texts;
    for (int text : unit) {
      texts.lengths.push_back(batch.lengths[text]);
      texts.tokens.push_back(batch.ids + text * batch.stride);
      texts.kinds.push_back(batch.types ? batch.types + text * batch.stride : nullptr);
    }
    model_->lay_out(texts);
    return texts;
  }

  void write(const Batch& batch, const std::vector<int>& unit, const Texts& texts, const Space& space) const {
    const Register& result = model_->result();
    const float* from = space.registers[model_->result_index()].data;
    for (size_t t = 0; t < unit.size(); t++) {
      const int rows = result.of_texts ? 1 : texts.lengths[t];
      const float* row = from + size_t(result.of_texts ? t : texts.starts[t]) * result.padded;
      float* to = batch.out + size_t(unit[t]) * batch.out_rows * result.width;
      for (int r = 0; r < rows; r++)
        std::memcpy(to + size_t(r) * result.width, row + size_t(r) * result.padded, result.width * sizeof(float));
    }
  }

  void run_unit(const Batch& batch, const std::vector<int>& unit, Scratch& scratch) {
    const Texts texts = read(batch, unit);
    Space space = take_space();
    model_->make_room(texts, space);
    for (size_t phase = 0; phase < model_->phases(); phase++)
      for (int part = 0, parts = model_->parts(phase, texts, 1); part < parts; part++)
        model_->run(phase, part, parts, texts, space, scratch);
    write(batch, unit, texts, space);
    give_space(std::move(space));
  }

  void share(const std::vector<int>& parts, std::function<void(size_t, int, Scratch&)> run, Scratch& scratch) {
    const auto job = std::make_shared<Job>(parts, std::move(run));
    pool_->run(job, scratch);
    job->finish();
  }

  Space take_space() {
    std::lock_guard<std::mutex> lock(spaces_mutex_);
    if (spaces_.empty()) return Space();
    Space space = std::move(spaces_.back());
    spaces_.pop_back();
    return space;
  }

  void give_space(Space space) {
    std::lock_guard<std::mutex> lock(spaces_mutex_);
    spaces_.push_back(std::move(space));
  }

  const std::unique_ptr<Model> model_;
  const int threads_;
  std::mutex mutex_, spaces_mutex_;
  std::vector<Space> spaces_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace

// Whether this processor has what the rest needs.
API int minialbert_supported() {
#ifdef __GNUC__
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return 0;
#endif
}

// What the functions below take: changes with them.
API int minialbert_format() { return 2; }

// A weight as products read it, for any number of sessions. Null where memory is short.
API void* minialbert_pack(const Given* weight) {
  try {
    return new Shared(std::make_shared<const Weight>(*weight));
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Give a weight back; sessions that were opened with it keep it.
API void minialbert_release(void* weight) { delete static_cast<Shared*>(weight); }

// A session of a program, whose last instruction gives the result. Null where memory is short.
API void* minialbert_open(const Instruction* code, int count, const int32_t* widths, const int32_t* of_texts,
                          int registers, const Shared* const* weights, int given, int threads) {
  try {
    return new Session(std::make_unique<Model>(code, count, widths, of_texts, registers, weights, given), threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Texts are rows of `stride` ids. Results are rows of floats: one for each text, or `out_rows` for each, of its tokens.
// Returns 0; 1 where memory or threads are short; 2 where a text is empty, or has a token that the model
// does not have.
API int minialbert_run(void* session, int count, const int32_t* lengths, int64_t stride, const int64_t* ids,
                       const int64_t* types, float* out, int out_rows) {
  try {
    return static_cast<Session*>(session)->run({count, lengths, stride, ids, types, out, out_rows}) ? 0 : 2;
  } catch (const std::exception&) {
    return 1;
  }
}

API void minialbert_close(void* session) { delete static_cast<Session*>(session); }
