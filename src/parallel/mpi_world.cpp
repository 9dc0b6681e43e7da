// MPI_COMM_WORLD as a Communicator. The only file that knows MPI.
#include <fmt/format.h>
#include <mpi.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>

#include "base/settings.h"
#include "chorale/parallel.h"
#include "parallel/shards.h"

namespace chorale {
namespace {

Status mpi_status(std::string_view what, int code) {
  if (code == MPI_SUCCESS) return Status::ok();
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return Status::io_error(fmt::format("{}: MPI: {}", what, std::string_view(text.data(), length)));
}

// An MPI datatype that walks a view's elements in row-major order. Sizes and strides are 64-bit inside it, so
// one message may be as large as a tensor.
class ViewType {
 public:
  explicit ViewType(const TensorView& view) {
    const auto bytes = static_cast<MPI_Aint>(size_of(view.dtype));
    MPI_Type_contiguous(static_cast<int>(bytes), MPI_BYTE, &type_);
    for (int i = view.rank - 1; i >= 0; --i)
      become([&](MPI_Datatype* outer) {
        return MPI_Type_create_hvector(static_cast<int>(view.shape[i]), 1, view.stride[i] * bytes, type_,
                                       outer);
      });
  }
  // The next item of the same type starts `bytes` further on, even inside this one.
  void repeat_every(std::int64_t bytes) {
    become([&](MPI_Datatype* outer) { return MPI_Type_create_resized(type_, 0, bytes, outer); });
  }
  ~ViewType() { MPI_Type_free(&type_); }
  ViewType(const ViewType&) = delete;
  ViewType& operator=(const ViewType&) = delete;

  MPI_Datatype commit() {
    MPI_Type_commit(&type_);
    return type_;
  }

 private:
  template <class Make>
  void become(const Make& make) {
    MPI_Datatype outer = MPI_DATATYPE_NULL;
    make(&outer);
    MPI_Type_free(&type_);
    type_ = outer;
  }
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// MPI counts with an int: the one limit of ViewType.
Status check_countable(const TensorView& view) {
  for (int i = 0; i < view.rank; ++i)
    if (view.shape[i] > std::numeric_limits<int>::max())
      return Status::unsupported(fmt::format("all_gather: dimension {} of {}: MPI sends at most {} entries",
                                             i, view.describe(), std::numeric_limits<int>::max()));
  return Status::ok();
}

// What the ranks of one gather must agree on.
struct Description {
  std::int64_t sound, dtype, dimension, rank;
  std::array<std::int64_t, TensorView::max_rank> shape{};  // zero beyond the rank

  Description() = default;
  Description(bool is_sound, const TensorView& view, int along)
      : sound(is_sound), dtype(static_cast<std::int64_t>(view.dtype)), dimension(along), rank(view.rank) {
    if (is_sound) std::copy_n(view.shape.begin(), view.rank, shape.begin());
  }
  bool operator==(const Description&) const = default;

  std::string text() const {
    TensorView view;
    view.dtype = static_cast<DType>(dtype);
    view.rank = static_cast<int>(rank);
    view.shape = shape;
    return sound ? fmt::format("{} along {}", view.describe(), dimension) : "something unusable";
  }
};

class MpiWorld final : public Communicator {
 public:
  explicit MpiWorld(MPI_Comm communicator) : communicator_(communicator) {
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  // The parts arrive where they belong: each is received as every size()-th slice of the whole.
  Result<Tensor> all_gather(const TensorView& shard, int dimension) override {
    CHORALE_RETURN_IF_ERROR(agree_on(shard, dimension));
    auto shape = shard.shape;
    const std::int64_t extent = shape[dimension];
    shape[dimension] *= size_;
    Tensor whole = Tensor::zeros(shard.dtype, std::span(shape.data(), static_cast<std::size_t>(shard.rank)));
    ViewType send(shard), receive(whole.view().slice(dimension, 0, extent));
    receive.repeat_every(extent * whole.view().stride[dimension] *
                         static_cast<std::int64_t>(size_of(shard.dtype)));
    CHORALE_RETURN_IF_ERROR(mpi_status(
        "all_gather",
        MPI_Allgather(shard.data, 1, send.commit(), whole.view().data, 1, receive.commit(), communicator_)));
    return whole;
  }

  Status barrier() override { return mpi_status("barrier", MPI_Barrier(communicator_)); }

 private:
  // The same verdict on every rank: a rank with an unusable shard takes part, so that the others do not wait
  // for it.
  Status agree_on(const TensorView& shard, int dimension) {
    Status sound = check_shard("all_gather", shard, dimension);
    if (sound.is_ok()) sound = check_countable(shard);
    const Description mine(sound.is_ok(), shard, dimension);
    constexpr int count = sizeof(Description) / sizeof(std::int64_t);
    std::vector<Description> all(static_cast<std::size_t>(size_));
    CHORALE_RETURN_IF_ERROR(mpi_status("all_gather", MPI_Allgather(&mine, count, MPI_INT64_T, all.data(),
                                                                   count, MPI_INT64_T, communicator_)));
    CHORALE_RETURN_IF_ERROR(sound);
    for (int other = 0; other < size_; ++other)
      if (all[static_cast<std::size_t>(other)] != mine)
        return Status::invalid_argument(
            fmt::format("all_gather: rank {} has {} and rank {} has {}: must be alike on all ranks", rank_,
                        mine.text(), other, all[static_cast<std::size_t>(other)].text()));
    return Status::ok();
  }

  MPI_Comm communicator_;
  int rank_ = 0, size_ = 1;
};

// Open MPI ends the process in which MPI_Init fails, so a child goes first. Under a launcher this is not
// needed (and the child would be taken for its parent): it reports a process that fails, and ends the others.
Status try_in_a_child() {
  const pid_t child = ::fork();
  if (child < 0) return Status::resource_exhausted("MPI cannot be tried out: fork failed");
  if (child == 0) {
    const bool started = MPI_Init(nullptr, nullptr) == MPI_SUCCESS && MPI_Finalize() == MPI_SUCCESS;
    ::_exit(started ? EXIT_SUCCESS : EXIT_FAILURE);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child || status != 0)
    return Status::unsupported(
        "MPI cannot start here: a trial MPI_Init failed, and Open MPI wrote why to standard error");
  return Status::ok();
}

// A process that fails leaves without MPI_Finalize, which would wait for the others: its launcher ends them.
void finalize_on_success(int exit_status, void*) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (exit_status == EXIT_SUCCESS && !finalized) MPI_Finalize();
}

Status initialise() {
  if (!read_settings().started_by_mpi_launcher) {
    ::setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);  // a process alone needs no daemon beside it
    CHORALE_RETURN_IF_ERROR(try_in_a_child());
  }
  int provided = MPI_THREAD_SINGLE;
  CHORALE_RETURN_IF_ERROR(
      mpi_status("MPI_Init_thread", MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided)));
  ::on_exit(finalize_on_success, nullptr);
  if (provided < MPI_THREAD_FUNNELED)
    return Status::unsupported("this MPI library does not serve programs with threads (MPI_THREAD_FUNNELED)");
  return Status::ok();
}

Result<std::shared_ptr<Communicator>> start() {
  int initialised = 0, finalized = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalized);
  if (finalized) return Status::unsupported("MPI has been finalised in this process and cannot start again");
  if (!initialised) CHORALE_RETURN_IF_ERROR(initialise());
  MPI_Comm communicator = MPI_COMM_NULL;  // our own, so that no message of the host program meets ours
  CHORALE_RETURN_IF_ERROR(mpi_status("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &communicator)));
  MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN);
  return std::shared_ptr<Communicator>(std::make_shared<MpiWorld>(communicator));
}

}  // namespace

Result<std::shared_ptr<Communicator>> mpi_world() {
  static const Result<std::shared_ptr<Communicator>> world = start();
  return world;
}

}  // namespace chorale
