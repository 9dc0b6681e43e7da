// Starting MPI without a launcher. CMakeLists.txt runs each test in a process of its own, since MPI starts
// once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "chorale/parallel.h"

namespace chorale {
namespace {

TEST(MpiStart, AProcessWithoutALauncherIsAlone) {
  const auto world = mpi_world().value();
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->rank(), 0);
  EXPECT_TRUE(world->barrier().is_ok());
  EXPECT_EQ(mpi_world().value(), world) << "it starts once";
}

TEST(MpiStart, FailureIsAStatus) {  // OMPI_MCA_pml names a component that does not exist
  const Status status = mpi_world().status();
  EXPECT_EQ(status.code(), Code::unsupported);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("MPI cannot start here"));
}

}  // namespace
}  // namespace chorale
