#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/none.hpp>

#include <gtest/gtest.h>

#include "../tensors.hpp"

namespace la = lambda_attention;

TEST(None, TellsTheKernelsNothing) {
  EXPECT_FALSE(la::none().data().rotates());
  EXPECT_FALSE(la::none().data().has_bias());
}

TEST(None, TakesNoNoticeOfDistances) {
  sequence<float> s(30, 2, 1, 8, 8);
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lambda_shape{2, 9, 9}, la::none(), s.out.view());
  EXPECT_LE(nmse(s.out.elements, expected(s, {2, 9, 9}, la::none())), 1e-11);

  sequence<float> limited(30, 2, 1, 8, 8);
  la::attend(limited.q.view(), limited.k.view(), limited.v.view(), la::lambda_shape{2, 9, 0}, la::none(),
             limited.out.view());
  EXPECT_TRUE(same_bits(s.out.elements, limited.out.elements));
}
