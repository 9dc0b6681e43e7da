// The cache of compiled kernels, with a compiler that only says what it was asked. docs/failures.md, 19
// and 20.
#include "implementations/cuda/kernel_cache.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/files.h"
#include "implementations/cuda/source.h"

namespace chorale::cuda {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Failures19KernelCache : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/chorale_cache_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    cache_ = std::make_unique<KernelCache>(root_ + "/kernels");
  }
  void TearDown() override {
    ::chmod((root_ + "/kernels").c_str(), 0700);
    fs::remove_all(root_);
  }

  KernelCache::Compile compiler(std::string cubin = "machine code") {
    return [this, cubin = std::move(cubin)]() -> Result<CompiledKernel> {
      ++compiled_;
      CompiledKernel kernel;
      kernel.cubin = cubin;
      kernel.log = "what the compiler said";
      kernel.seconds = 1.5;
      return kernel;
    };
  }
  CompiledKernel get(const std::string& identity = "identity") {
    return cache_->get(identity, compiler()).value();
  }
  void expect_whole(const CompiledKernel& kernel) {
    EXPECT_EQ(kernel.cubin, "machine code");
    EXPECT_EQ(kernel.log, "what the compiler said");
  }
  bool can_refuse_root() const { return ::geteuid() != 0; }

  std::string root_;
  std::unique_ptr<KernelCache> cache_;
  std::atomic<int> compiled_ = 0;
};

TEST_F(Failures19KernelCache, KeepsWhatWasCompiled) {
  expect_whole(get());
  const CompiledKernel again = get();
  expect_whole(again);
  EXPECT_EQ(compiled_, 1);
  EXPECT_TRUE(again.from_cache);
  EXPECT_DOUBLE_EQ(again.seconds, 1.5);
  EXPECT_THAT(again.cache_note, IsEmpty());
}

// Whatever the file was cut to, and whichever byte of it was changed, the kernel is compiled anew and the
// file mended.
TEST_F(Failures19KernelCache, CompilesAnewWhatIsDamaged) {
  get();
  const std::string path = cache_->path("identity"), whole = read_file(path).value();
  const auto expect_mended = [&](const std::string& damaged, const char* how) {
    ASSERT_TRUE(write_file(path, damaged).is_ok());
    const int before = compiled_;
    const CompiledKernel kernel = get();
    expect_whole(kernel);
    EXPECT_EQ(compiled_, before + 1) << how;
    EXPECT_THAT(kernel.cache_note, HasSubstr("compiled anew")) << how;
    EXPECT_TRUE(get().from_cache) << how;
  };
  expect_mended("", "empty");
  for (std::size_t size = 1; size < whole.size(); size += 7)
    expect_mended(whole.substr(0, size), "cut short");
  expect_mended(whole + "x", "longer");
  for (std::size_t i = 0; i < whole.size(); i += 5) {
    std::string changed = whole;
    changed[i] ^= 0x20;
    if (changed.substr(0, whole.find('\n')).find(" 1.500 ") == std::string::npos)
      continue;  // how long it took
    expect_mended(changed, "a byte changed");
  }
}

TEST_F(Failures19KernelCache, AFileOfAnotherKernelIsNotTaken) {
  get("one");
  get("two");
  fs::copy_file(cache_->path("one"), cache_->path("two"), fs::copy_options::overwrite_existing);
  EXPECT_FALSE(get("two").from_cache);
}

TEST_F(Failures19KernelCache, ThreadsThatWantTheSameAtOnceGetOneKernel) {
  std::vector<std::thread> threads;
  std::atomic<int> whole = 0;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      const auto kernel = cache_->get("identity", [&]() -> Result<CompiledKernel> {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        return compiler()();
      });
      whole += kernel.has_value() && kernel.operator->()->cubin == "machine code";
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(whole, 8);
  EXPECT_EQ(compiled_, 1);
}

// Processes, one of which is killed while it compiles.
TEST_F(Failures19KernelCache, AProcessKilledWhileItCompilesHoldsNobodyUp) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    (void)cache_->get("identity", [&]() -> Result<CompiledKernel> {
      if (::write(ready[1], "x", 1) != 1) ::_exit(2);
      ::pause();
      return Status::internal("never");
    });
    ::_exit(1);
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ::kill(child, SIGKILL);
  });
  expect_whole(get());
  killer.join();
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(get().from_cache);
}

TEST_F(Failures19KernelCache, WaitsForAStuckProcessNoLongerThanItsPatience) {
  get("other");  // makes the folder
  const int lock = ::open((cache_->path("identity") + ".lock").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  cache_->patience_seconds = 0.1;
  expect_whole(get());
  ::close(lock);
}

TEST_F(Failures19KernelCache, AFailureToCompileIsKeptNowhere) {
  const auto failed =
      cache_->get("identity", [] { return Result<CompiledKernel>(Status::internal("line 3: no")); });
  EXPECT_THAT(failed.status().message(), HasSubstr("line 3"));
  expect_whole(get());
}

TEST_F(Failures19KernelCache, AFolderThatOthersMayWriteToIsNotUsed) {
  get();
  for (const mode_t mode : {0720, 0702}) {
    ASSERT_EQ(::chmod(cache_->folder().c_str(), mode), 0);
    const CompiledKernel kernel = get();
    expect_whole(kernel);
    EXPECT_FALSE(kernel.from_cache);
    EXPECT_THAT(kernel.cache_note, HasSubstr("may be written by others"));
  }
  ASSERT_EQ(::chmod(cache_->folder().c_str(), 0755), 0);
  EXPECT_TRUE(get().from_cache);
}

TEST_F(Failures19KernelCache, AFolderThatCannotBeWrittenToIsSaidSo) {
  if (!can_refuse_root()) GTEST_SKIP() << "root may write everywhere";
  get("other");
  ASSERT_EQ(::chmod(cache_->folder().c_str(), 0500), 0);
  const CompiledKernel kernel = get();
  expect_whole(kernel);
  EXPECT_THAT(kernel.cache_note, HasSubstr("cannot write"));
}

TEST_F(Failures19KernelCache, AFileInTheFoldersPlaceIsSaidSo) {
  ASSERT_TRUE(write_file(root_ + "/kernels", "not a folder").is_ok());
  const CompiledKernel kernel = get();
  expect_whole(kernel);
  EXPECT_THAT(kernel.cache_note, HasSubstr("is not a folder"));
}

// A disk that is full half-way through a file; a limit on the size of files stands for it, in a process of
// its own.
TEST_F(Failures19KernelCache, AFullDiskIsSaidSo) {
  get("other");
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto kernel = cache_->get("identity", compiler(std::string(5000, 'x')));
    const bool right = kernel.has_value() && kernel.operator->()->cubin.size() == 5000 &&
                       kernel.operator->()->cache_note.find("cannot write") != std::string::npos;
    ::_exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (const auto& entry : fs::directory_iterator(cache_->folder()))
    EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr(".tmp."))) << "left behind";
  EXPECT_FALSE(get().from_cache);  // and nothing of it was taken for a kernel
}

TEST_F(Failures19KernelCache, NoFolderMeansNothingIsKept) {
  const KernelCache none("");
  EXPECT_FALSE(none.get("identity", compiler()).value().from_cache);
  EXPECT_THAT(none.get("identity", compiler()).value().cache_note, HasSubstr("no cache folder"));
  EXPECT_EQ(compiled_, 2);
}

// What was used last stays.
TEST_F(Failures19KernelCache, IsBoundedInSize) {
  const std::string big(100'000, 'x');
  const KernelCache small(root_ + "/kernels", 350'000);
  const auto use = [&](const std::string& identity) {
    return small.get(identity, compiler(big)).value().from_cache;
  };
  for (const char* identity : {"a", "b", "c"}) use(identity);
  const auto long_ago = fs::file_time_type::clock::now() - std::chrono::hours(1);
  for (const char* identity : {"a", "b", "c"}) fs::last_write_time(small.path(identity), long_ago);
  EXPECT_TRUE(use("a"));  // used again, so the oldest is b or c
  use("d");
  EXPECT_TRUE(fs::exists(small.path("a")));
  EXPECT_TRUE(fs::exists(small.path("d")));
  std::uintmax_t total = 0;
  for (const auto& entry : fs::directory_iterator(small.folder())) total += entry.file_size();
  EXPECT_LE(total, 350'000u);
}

TEST(Failures19KernelCacheFolder, ComesFromTheEnvironment) {
  ::setenv("CHORALE_KERNEL_CACHE", "/somewhere", 1);
  EXPECT_EQ(KernelCache::default_folder(), "/somewhere");
  ::setenv("CHORALE_KERNEL_CACHE", "off", 1);
  EXPECT_EQ(KernelCache::default_folder(), "");
  ::unsetenv("CHORALE_KERNEL_CACHE");
  ::setenv("XDG_CACHE_HOME", "/cache", 1);
  EXPECT_EQ(KernelCache::default_folder(), "/cache/chorale/kernels");
  ::unsetenv("XDG_CACHE_HOME");
}

// ---- 20: the key covers everything.

Problem problem() {
  Problem problem{.query_heads = 8, .kv_heads = 2, .head_dim = 128};
  problem.mask = mask::causal() && mask::window(1000);
  problem.score = score::softcap(30);
  return problem;
}
std::string identity(const Problem& problem, int page_size = 16, const char* arch = "sm_90a",
                     const char* compiler = "13.0") {
  return kernel_identity(kernel_key(KernelKind::forward, problem, page_size), arch, compiler);
}

TEST(Failures20KernelIdentity, DiffersWithEverythingThatMatters) {
  std::vector<std::string> all{identity(problem()), identity(problem(), 32), identity(problem(), 0),
                               identity(problem(), 16, "sm_100a"), identity(problem(), 16, "sm_90a", "13.1")};
  const auto with = [&](auto change) {
    Problem changed = problem();
    change(changed);
    all.push_back(identity(changed));
  };
  with([](Problem& p) { p.mask = mask::causal() && mask::window(1001); });
  with([](Problem& p) { p.mask = mask::causal(); });
  with([](Problem& p) { p.mask = mask::all(); });
  with([](Problem& p) { p.score = score::softcap(31); });
  with([](Problem& p) { p.score = score::identity(); });
  with([](Problem& p) { p.head_dim = 64; });
  with([](Problem& p) { p.head_dim = 192, p.value_head_dim = 128; });
  with([](Problem& p) { p.dtype = DType::float16; });
  with([](Problem& p) { p.sinks = true; });
  with([](Problem& p) { p.kv_heads = 4; });
  all.push_back(kernel_identity(kernel_key(KernelKind::decode, problem(), 16), "sm_90a", "13.0"));
  all.push_back(kernel_identity(kernel_key(KernelKind::decode, problem(), 16, {2, 1}), "sm_90a", "13.0"));
  all.push_back(kernel_identity(kernel_key(KernelKind::decode, problem(), 16, {1, 2}), "sm_90a", "13.0"));
  Problem codes = problem();
  codes.kv_dtype = DType::float8_e4m3;
  for (const KernelKind kind : {KernelKind::decode, KernelKind::widen})
    all.push_back(kernel_identity(kernel_key(kind, codes, 16), "sm_90a", "13.0"));
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
}

// Another kernel's sources are not in it: changing them leaves this one compiled.
TEST(Failures20KernelIdentity, HasTheSourcesThatItsKernelIncludes) {
  const auto of = [](KernelKind kind) {
    return kernel_identity(kernel_key(kind, problem(), 16), "sm_90a", "13.0");
  };
  const std::string forward = of(KernelKind::forward), decode = of(KernelKind::decode),
                    store = of(KernelKind::store);
  for (const char* file :
       {"forward.cu", "forward_consume.cuh", "softmax.cuh", "program.cuh", "program_math.cuh"})
    EXPECT_THAT(forward, HasSubstr(std::string("--- ") + file + "\n"));
  EXPECT_THAT(decode, HasSubstr("--- decode_bring.cuh\n"));
  EXPECT_THAT(store, HasSubstr("--- cache_params.h\n"));
  EXPECT_THAT(forward, ::testing::Not(HasSubstr("--- decode")));
  EXPECT_THAT(decode, ::testing::Not(HasSubstr("--- forward")));
  EXPECT_THAT(store, ::testing::Not(HasSubstr("--- softmax")));
}

// What does not change the code is not in it.
TEST(Failures20KernelIdentity, IsTheSameForWhatOneKernelServes) {
  Problem more_heads = problem();
  more_heads.query_heads = 16, more_heads.kv_heads = 4, more_heads.scale = 0.5f,
  more_heads.first_query_head = 8;
  EXPECT_EQ(identity(problem()), identity(more_heads));
  Problem codes = problem();  // the forward kernel reads what widen has made of them
  codes.kv_dtype = DType::float8_e4m3;
  EXPECT_EQ(identity(problem(), 0), identity(codes, 16));
}

}  // namespace
}  // namespace chorale::cuda
